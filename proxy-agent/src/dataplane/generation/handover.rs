//! From the previous generation's programs to those of this one.

use std::{
    collections::HashMap,
    hash::{BuildHasher as _, RandomState},
    sync::mpsc::{Receiver, TryRecvError, channel},
    time::Duration,
};

use anyhow::{Context as _, Result};
use aya::programs::loaded_programs;
use proxy_common::layout::{
    handover::{FOLLOWS, LEADS},
    tables::{FLOWS_V4, FLOWS_V6, HANDOVER, SERVICES_V4},
};

use super::{
    Generation, Previous,
    carry::{self, Reach},
    flows::{self, Pass},
};
use crate::dataplane::{
    hook::Place,
    object::Programs,
    pin,
    programmer::{GRACE, Programmer},
    raw::{BytesMap, Update},
    tcx,
};

/// How often the flows that stay with the previous generation are looked at.
const LOOK: Duration = Duration::from_secs(5);

/// How far it is.
enum Stage {
    /// The previous generation decides
    Following,
    /// This one decides, since then
    Leading(Duration),
}

/// What a round of moving came to, and when it began.
struct Round {
    began: Duration,
    pass: Result<Pass>,
}

/// Takes over from a previous generation.
pub(in crate::dataplane) struct Handover {
    own: Generation,
    previous: Previous,
    stage: Stage,
    round: Option<Receiver<Round>>,
    next_round: Duration,
    idle: Idle,
    /// Longest time that a flow may be without packets
    patience: Duration,
}

impl Handover {
    /// Begins, or goes on where the last agent ended: the new programs get to know the old ones, and have their links and
    /// filters from now on.
    ///
    /// # Errors
    /// If something can't be read or written.
    pub(in crate::dataplane) fn begin(
        own: Generation,
        previous: Previous,
        programs: &mut Programs,
        patience: Duration,
        now: Duration,
    ) -> Result<Self> {
        let stage = if previous.own_leads {
            Stage::Leading(now)
        } else {
            set_word(&own, FOLLOWS)?;
            carry::tables(previous.leader(), &own)?;
            carry::counters(previous.leader(), &own)?;
            Stage::Following
        };
        tell_programs(previous.leader(), programs)?;
        for generation in &previous.chain {
            adopt(generation, &own)?;
        }
        Ok(Self {
            own,
            previous,
            stage,
            round: None,
            next_round: now,
            idle: Idle::default(),
            patience,
        })
    }

    /// Sets the filters' bits that the flows of the previous generation need.
    ///
    /// # Errors
    /// If a table can't be read or written.
    pub(in crate::dataplane) fn admit(&self, programmer: &mut Programmer, now: Duration) -> Result<()> {
        let reach = Reach::of(self.previous.leader()).context("cannot read the flows of the previous generation")?;
        reach.admit(programmer, now)
    }

    /// Whether the previous generation still decides.
    pub(in crate::dataplane) const fn follows(&self) -> bool {
        matches!(self.stage, Stage::Following)
    }

    /// Has this generation decide from now on. To be called when its programs are at every hook and its tables hold all that
    /// is to be served.
    ///
    /// # Errors
    /// If something can't be read or written; then the previous one goes on.
    pub(in crate::dataplane) fn lead(&mut self, programmer: &mut Programmer, now: Duration) -> Result<()> {
        // What the previous generation has not moved to its own tables yet would be out of sight.
        let mut older = self.previous.leader().previous();
        while older.exists() {
            flows::shift(&older, &self.own, true)?;
            older = older.previous();
        }
        self.admit(programmer, now)?;
        carry::counters(self.previous.leader(), &self.own)?;
        set_word(&self.own, LEADS)?;
        self.stage = Stage::Leading(now);
        tracing::info!("taking over from the previous programs");
        // Flows that began since the last look.
        self.admit(programmer, now)
    }

    /// Carries over what sockets have been connected to and sent to until just now, when the programs of this generation serve
    /// them.
    ///
    /// # Errors
    /// If a table can't be read or written.
    pub(in crate::dataplane) fn carry_sockets(&self) -> Result<()> {
        carry::sockets(self.previous.leader(), &self.own)
    }

    /// Moves flows in the background; `true` when nothing is left of the previous generation.
    ///
    /// # Errors
    /// If flows could not be moved; it is tried again.
    pub(in crate::dataplane) fn advance(&mut self, now: Duration) -> Result<bool> {
        let Stage::Leading(since) = self.stage else {
            return Ok(false);
        };
        if let Some(round) = &self.round {
            let round = match round.try_recv() {
                Ok(round) => round,
                Err(TryRecvError::Empty) => return Ok(false),
                Err(TryRecvError::Disconnected) => anyhow::bail!("moving flows has ended before its time"),
            };
            self.round = None;
            let pass = round.pass?;
            tracing::debug!(moved = pass.moved, left = pass.left, "flows of the previous generation");
            // No program that began before this generation led is still at work.
            if pass == Pass::default() && round.began >= since + GRACE {
                carry::counters(self.previous.leader(), &self.own)?;
                return Ok(true);
            }
            // Moving may take more than one round, and has an end; what can't be moved is only looked at now and then.
            if pass.moved == 0 && pass.left > 0 {
                self.idle.forget(self.previous.leader(), self.patience, now)?;
                self.next_round = now + LOOK;
            }
            carry::counters(self.previous.leader(), &self.own)?;
        }
        if now >= self.next_round {
            let (sender, receiver) = channel();
            let (previous, own) = (self.previous.leader().clone(), self.own.clone());
            let last = now >= since + GRACE;
            std::thread::Builder::new()
                .name("move-flows".to_owned())
                .spawn(move || {
                    let pass = flows::shift(&previous, &own, last);
                    // Nobody waits for it if the agent ends.
                    let _sent = sender.send(Round { began: now, pass });
                })?;
            self.round = Some(receiver);
        }
        Ok(false)
    }

    /// Removes the previous generation, when programs without a look at it are at every hook.
    ///
    /// # Errors
    /// If something can't be removed.
    pub(in crate::dataplane) fn finish(&self) -> Result<()> {
        carry::counters(self.previous.leader(), &self.own)?;
        self.own.previous().remove()?;
        for name in Programs::LISTS {
            pin::remove(&self.own.map(name))?;
        }
        tracing::info!("nothing is left of the previous programs and tables");
        Ok(())
    }
}

fn set_word(own: &Generation, word: u32) -> Result<()> {
    let path = own.map(HANDOVER.name);
    BytesMap::open(&path)
        .and_then(|map| map.set(&0_u32.to_ne_bytes(), &word.to_ne_bytes(), Update::Any))
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(())
}

/// Puts the programs of a generation, which are those that use its table of services, where the new ones find them.
fn tell_programs(leader: &Generation, programs: &mut Programs) -> Result<()> {
    let services = BytesMap::open(&leader.map(SERVICES_V4.name));
    let Ok(services) = services.map(|map| map.info().id) else {
        tracing::warn!("the programs of the previous generation are not to be found: its flows end");
        return Ok(());
    };
    let mut found = HashMap::new();
    for program in loaded_programs().filter_map(Result::ok) {
        let Some(place) = program.name_as_str().and_then(Place::of_program) else {
            continue;
        };
        if program
            .map_ids()
            .ok()
            .flatten()
            .is_some_and(|ids| ids.contains(&services))
        {
            // The latest is the one with the greatest id.
            found.insert(place, program);
        }
    }
    for (place, program) in found {
        programs
            .set_previous(place, &program.fd()?)
            .with_context(|| format!("cannot call the previous program {}", place.name))?;
    }
    Ok(())
}

/// Takes the pinned links and the marks of filters over. What is attached stays attached.
fn adopt(from: &Generation, own: &Generation) -> Result<()> {
    for (old, new) in [(from.links(), own.links()), (from.filters(), own.filters())] {
        for path in pin::entries(&old)? {
            let target = new.join(path.file_name().context("an entry has a name")?);
            if !target.exists() {
                std::fs::rename(&path, &target)
                    .with_context(|| format!("cannot move {} to {}", path.display(), target.display()))?;
            } else if old.ends_with("links") {
                tcx::detach(&path)?;
            }
        }
    }
    Ok(())
}

/// Flows that can't be moved, and since when they are as they are.
#[derive(Default)]
struct Idle {
    hasher: RandomState,
    seen: HashMap<Vec<u8>, (u64, Duration)>,
}

impl Idle {
    /// Removes those that have been so for longer than `patience`: no packet writes the time into them any more.
    fn forget(&mut self, previous: &Generation, patience: Duration, now: Duration) -> Result<()> {
        let mut seen = HashMap::new();
        for table in [FLOWS_V4, FLOWS_V6] {
            let Ok(flows) = BytesMap::open(&previous.map(table.name)) else {
                continue;
            };
            let mut over = Vec::new();
            flows.scan(&mut |key, value| {
                let hash = self.hasher.hash_one(value);
                let since = match self.seen.get(key) {
                    Some(&(before, since)) if before == hash => since,
                    _ => now,
                };
                if now > since + patience {
                    over.push(key.to_vec());
                } else {
                    seen.insert(key.to_vec(), (hash, since));
                }
            })?;
            for key in over {
                flows.remove(&key)?;
            }
        }
        self.seen = seen;
        Ok(())
    }
}
