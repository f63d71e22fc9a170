//! Writes that fail: what was programmed stays, and all is made good as soon as writes succeed again.

use proptest::prelude::*;

use super::{
    kill::{planned, states},
    property::services,
    world::{State, World},
};
use crate::dataplane::faults::{Fault, Faults};

/// Full tables and refusals in turns.
fn fault(number: u64) -> Fault {
    if number.is_multiple_of(2) {
        Fault::Full
    } else {
        Fault::Refuse
    }
}

/// behaviour.md 9.4: one write fails, whichever.
#[test]
fn a_write_that_fails_loses_nothing() {
    let mut world = World::new();
    let mut before = State::default();
    for (step, after) in states() {
        for write in 0.. {
            let when = format!("{step}, without write {write}");
            world.count_traffic();
            let ids = world.ids();
            let faults = Faults::new(Box::new(move |number, _| (number == write).then(|| fault(number))));
            let mut programmer = world.sync(&after, &faults).expect("alive");
            world.expect_either(&after, &when);
            let was_met = faults.writes() > write;
            faults.end();
            if !was_met {
                world.expect_settled(programmer, &after, &when);
                break;
            }
            world.seconds += 1;
            programmer.tick(world.now());
            world.expect_kept(&ids, &after, &when);
            world.expect_settled(programmer, &after, &when);
            let programmer = world.sync(&before, &Faults::kill_at(u64::MAX)).expect("alive");
            world.expect_settled(programmer, &before, &format!("back before {step}"));
        }
        before = after;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Many writes fail for a while, in the middle of any changes.
    #[test]
    fn any_failures_are_made_good(
        plans in proptest::collection::vec((services(), 1..7u64, 0..7u64, 1..4usize), 1..5),
    ) {
        let mut world = World::new();
        for (plan, every, first, ticks) in plans {
            let after = planned(plan);
            world.count_traffic();
            let ids = world.ids();
            let failing = move |number: u64, _: &'static str| (number % every == first).then(|| fault(number));
            let faults = Faults::new(Box::new(failing));
            let mut programmer = world.sync(&after, &faults).expect("alive");
            for _ in 0..ticks {
                world.expect_either(&after, "while writes fail");
                world.seconds += 1;
                programmer.tick(world.now());
            }
            world.expect_either(&after, "while writes fail");
            faults.end();
            world.seconds += 1;
            programmer.tick(world.now());
            world.expect_kept(&ids, &after, "after all");
            world.expect_settled(programmer, &after, "after all");
        }
    }
}
