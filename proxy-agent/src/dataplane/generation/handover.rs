//! From the previous generation's programs to those of this one.

use std::{
    collections::HashMap,
    hash::{BuildHasher as _, RandomState},
    os::fd::AsRawFd as _,
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context as _, Result};
use proxy_common::layout::{
    TICK_SHIFT, Timeouts,
    handover::{FOLLOWS, LEADS},
    tables::{FLOWS_V4, FLOWS_V6, HANDOVER},
};

use super::{
    Generation, Previous,
    carry::{self, Reach},
    flows::{self, Age, Pass},
    openings,
};
use crate::dataplane::{
    collect,
    hook::Place,
    object::Programs,
    pin,
    programmer::{GRACE, Programmer},
    raw::{self, BytesMap, Update},
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
    round: Option<JoinHandle<Round>>,
    next_round: Duration,
    idle: Idle,
    /// How long flows live without packets
    timeouts: Timeouts,
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
        timeouts: Timeouts,
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
        tell_programs(previous.leader(), &own)?;
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
            timeouts,
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

    fn age(&self, now: Duration) -> Age {
        Age {
            now: collect::tick(now),
            timeouts: self.timeouts,
        }
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
            flows::copy_established(&older, &self.own)?;
            older = older.previous();
        }
        flows::sweep(self.previous.leader(), &self.own, self.age(now))?;
        self.admit(programmer, now)?;
        openings::carry(self.previous.leader(), &self.own)?;
        carry::affinity(self.previous.leader(), &self.own)?;
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
        if self.round.as_ref().is_some_and(|round| !round.is_finished()) {
            return Ok(false);
        }
        if let Some(round) = self.round.take() {
            let Ok(round) = round.join() else {
                anyhow::bail!("moving flows has ended before its time");
            };
            let pass = round.pass?;
            tracing::debug!(moved = pass.moved, left = pass.left, "flows of the previous generation");
            // No program that began before this generation led is still at work.
            if pass == Pass::default() && round.began >= since + GRACE {
                carry::counters(self.previous.leader(), &self.own)?;
                return Ok(true);
            }
            // Moving may take more than one round, and has an end; what can't be moved is only looked at now and then.
            if pass.moved == 0 && pass.left > 0 {
                let patience = Duration::from_nanos(u64::from(self.timeouts.longest()) << TICK_SHIFT);
                self.idle.forget(self.previous.leader(), patience, now)?;
                self.next_round = now + LOOK;
            }
            carry::counters(self.previous.leader(), &self.own)?;
        }
        if now >= self.next_round {
            let (previous, own) = (self.previous.leader().clone(), self.own.clone());
            let (last, age) = (now >= since + GRACE, self.age(now));
            let thread = std::thread::Builder::new().name("move-flows".to_owned());
            self.round = Some(thread.spawn(move || Round {
                began: now,
                pass: flows::shift(&previous, &own, last, age),
            })?);
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

/// Puts the programs of a generation where the new ones find them.
fn tell_programs(leader: &Generation, own: &Generation) -> Result<()> {
    for place in Place::ALL {
        let path = leader.program(place.name);
        if path.exists() {
            let program = raw::object_get(&path)?;
            // What is written to a list of programs is a descriptor.
            BytesMap::open(&own.map(place.list))
                .and_then(|list| {
                    let descriptor = program.as_raw_fd().to_ne_bytes();
                    list.set(&place.index.to_ne_bytes(), &descriptor, Update::Any)
                })
                .with_context(|| format!("cannot call the previous program {}", path.display()))?;
        }
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

impl Drop for Handover {
    fn drop(&mut self) {
        // Whoever has the pin directory next must be the only one to write there. A panic is told by its own message.
        let _ended = self.round.take().map(JoinHandle::join);
    }
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
