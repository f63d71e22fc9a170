//! What the kernel programs cost the verifier, held below bounds: a change that makes them much larger is to be noticed.

use anyhow::{Result, ensure};
use object::{Object as _, ObjectSymbol as _};
use proxy_agent::dataplane::simulation::Hook;
use proxy_tests::{
    skip,
    test_run::{self, Kernel},
};

/// What a program may cost: about a tenth more than measured on Linux 6.18 (kernels differ in how they count).
struct Budget {
    hook: Hook,
    /// Instructions that the verifier goes through; it gives up at 1,000,000 (`BPF_COMPLEXITY_LIMIT_INSNS`)
    verified: u32,
    /// Bytes of the program as the verifier leaves it
    translated: u32,
}

const BUDGETS: [Budget; 2] = [
    Budget {
        hook: Hook::Ingress,
        verified: 66_000,
        translated: 52_000,
    },
    Budget {
        hook: Hook::Egress,
        verified: 34_000,
        translated: 34_000,
    },
];

#[test]
fn programs_stay_within_their_budgets() -> Result<()> {
    if let Some(obstacle) = test_run::obstacle() {
        skip!("{obstacle}");
    }
    let mut kernel = Kernel::load(64)?;
    for Budget {
        hook,
        verified,
        translated,
    } in BUDGETS
    {
        for (what, cost, limit) in [
            ("verified instructions", kernel.verified_instructions(hook)?, verified),
            ("bytes translated", kernel.translated_size(hook)?, translated),
        ] {
            println!("{hook:?}: {cost} {what} of {limit}");
            ensure!(cost <= limit, "{hook:?} has {cost} {what}, more than its {limit}");
        }
    }
    Ok(())
}

/// The verifier refuses a loop without an end, and with it every program that may panic.
#[test]
fn programs_cannot_panic() -> Result<()> {
    if let Some(obstacle) = test_run::obstacle() {
        skip!("{obstacle}");
    }
    let bytes = test_run::object()?;
    let object = object::File::parse(&bytes[..])?;
    let names: Vec<_> = object.symbols().filter_map(|symbol| symbol.name().ok()).collect();
    for program in ["ingress", "egress"] {
        ensure!(names.contains(&program), "no symbol {program} in {names:?}");
    }
    let panics: Vec<_> = names
        .iter()
        .filter(|name| name.contains("panic") || name.contains("unwind"))
        .collect();
    ensure!(panics.is_empty(), "{panics:?}");
    Ok(())
}
