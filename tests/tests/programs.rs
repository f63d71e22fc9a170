//! What the kernel programs cost the verifier, held below bounds: a change that makes them much larger is to be noticed.

use std::{fs, net::SocketAddr};

use anyhow::{Context as _, Result, ensure};
use object::{Object as _, ObjectSymbol as _};
use proxy_agent::dataplane::{self, collect, simulation::Hook, watch::Watch};
use proxy_common::{
    datapath::Reason,
    layout::{Backend, LEASE, MAX_WATCHERS, Timeouts, filter_bit},
    packet::{TCP, UDP, V4, V6, tcp_flags},
};
use proxy_tests::{
    fixtures::{Packet, Pair, TestFamily, answer},
    lab::{PATIENCE, wait_until},
    skip,
    test_run::{self, Kernel},
};

/// What a program may cost: about a tenth more than measured on Linux 6.18 (kernels differ in how they count).
struct Budget {
    program: &'static str,
    /// Instructions that the verifier goes through; it gives up at 1,000,000 (`BPF_COMPLEXITY_LIMIT_INSNS`)
    verified: u32,
    /// Bytes of the program as the verifier leaves it
    translated: u32,
}

/// Packets without a link-layer header cost what frames do.
const BUDGETS: [Budget; 13] = [
    ingress("ingress"),
    egress("egress"),
    ingress("ingress_l3"),
    egress("egress_l3"),
    Budget {
        program: test_run::FORWARD,
        verified: 115_000,
        translated: 90_000,
    },
    socket("connect4", 11_600, 11_400),
    socket("connect6", 24_600, 29_400),
    socket("sendmsg4", 11_800, 12_900),
    socket("sendmsg6", 15_300, 21_600),
    socket("recvmsg4", 110, 750),
    socket("recvmsg6", 220, 1_750),
    socket("getpeername4", 60, 510),
    socket("getpeername6", 130, 1_120),
];

const fn socket(program: &'static str, verified: u32, translated: u32) -> Budget {
    Budget {
        program,
        verified,
        translated,
    }
}

const fn ingress(program: &'static str) -> Budget {
    Budget {
        program,
        verified: 103_000,
        translated: 131_000,
    }
}

const fn egress(program: &'static str) -> Budget {
    Budget {
        program,
        verified: 93_000,
        translated: 121_000,
    }
}

/// Those that count by endpoint, too, have code that the verifier removes otherwise: it must have room on the stack as well.
#[test]
fn programs_stay_within_their_budgets() -> Result<()> {
    if let Some(obstacle) = test_run::obstacle() {
        skip!("{obstacle}");
    }
    for count_endpoints in [false, true] {
        let mut kernel = Kernel::load_with(64, Timeouts::DEFAULT, count_endpoints)?;
        kernel.load_socket_programs()?;
        for Budget {
            program,
            verified,
            translated,
        } in BUDGETS
        {
            for (what, cost, limit) in [
                (
                    "verified instructions",
                    kernel.verified_instructions(program)?,
                    verified,
                ),
                ("bytes translated", kernel.translated_size(program)?, translated),
            ] {
                println!("{program}: {cost} {what} of {limit}");
                ensure!(cost <= limit, "{program} has {cost} {what}, more than its {limit}");
            }
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
    let programs = test_run::PROGRAMS.into_iter().chain(test_run::SOCKET_PROGRAMS);
    for program in programs.chain([test_run::FORWARD]) {
        ensure!(names.contains(&program), "no symbol {program} in {names:?}");
    }
    let panics: Vec<_> = names
        .iter()
        .filter(|name| name.contains("panic") || name.contains("unwind"))
        .collect();
    ensure!(panics.is_empty(), "{panics:?}");
    Ok(())
}

/// Length of the Ethernet header of a frame.
const ETHERNET: usize = 14;

/// A packet through the programs of a device without link-layer header comes out as its frame does of the others; either
/// kind of program begins the flow, the other goes on with it.
fn bare_packets_fare_like_frames<F: TestFamily>() -> Result<()> {
    let mut kernel = Kernel::load(64)?;
    drop(Pair::<F>::new(&mut kernel)?);
    let ipv6 = F::PLACES.client.is_ipv6();
    let address = F::address(test_run::bare_source(ipv6, 9));
    let (word, bit) = filter_bit(&address);
    kernel.tables().backend_filter.insert(&word, &bit)?;
    let slots = &mut F::tables_mut(kernel.tables()).slots;
    for (key, backend) in slots.entries()? {
        slots.insert(&key, &Backend { address, ..backend })?;
    }
    for (protocol, bare_begins, port) in [(TCP, true, 1), (TCP, false, 2), (UDP, true, 3), (UDP, false, 4)] {
        let client = SocketAddr::new(test_run::bare_source(ipv6, 1), port);
        let request = Packet::first(protocol, client, F::PLACES.web).frame();
        let mut through = |hook, frame: &[u8], bare_first: bool| -> Result<Vec<u8>> {
            let mut whole = None;
            for bare in [bare_first, !bare_first] {
                if bare {
                    let ran = kernel.run_bare(hook, &frame[ETHERNET..])?;
                    ensure!(ran.verdict == test_run::NEXT, "{hook:?}: {ran:02x?}");
                    let bare = [&frame[..ETHERNET], &ran.frame].concat();
                    ensure!(
                        *whole.get_or_insert_with(|| bare.clone()) == bare,
                        "{hook:?}: {bare:02x?}"
                    );
                } else {
                    let ran = kernel.run(hook, frame, 1)?;
                    ensure!(ran.verdict == test_run::NEXT, "{hook:?}: {ran:02x?}");
                    ensure!(
                        *whole.get_or_insert_with(|| ran.frame.clone()) == ran.frame,
                        "{hook:?}: {ran:02x?}"
                    );
                }
            }
            let whole = whole.unwrap_or_default();
            ensure!(whole != frame, "{hook:?}: not rewritten");
            Ok(whole)
        };
        let to_backend = through(Hook::Ingress, &request, bare_begins)?;
        let reply = answer(&to_backend, tcp_flags::SYN | tcp_flags::ACK)?;
        let to_client = through(Hook::Egress, &reply, bare_begins)?;
        ensure!(
            to_client == answer(&request, tcp_flags::SYN | tcp_flags::ACK)?,
            "{to_client:02x?}"
        );
    }
    Ok(())
}

#[test]
fn bare_packets_fare_like_frames_ipv4() -> Result<()> {
    if let Some(obstacle) = test_run::obstacle() {
        skip!("{obstacle}");
    }
    bare_packets_fare_like_frames::<V4>()
}

#[test]
fn bare_packets_fare_like_frames_ipv6() -> Result<()> {
    if let Some(obstacle) = test_run::obstacle() {
        skip!("{obstacle}");
    }
    bare_packets_fare_like_frames::<V6>()
}

/// So many can watch at once, each with a ring of its own; who gives its place up, or doesn't say any more that it watches, makes
/// room for another.
#[test]
fn those_who_watch_share_the_places() -> Result<()> {
    if let Some(obstacle) = test_run::obstacle() {
        skip!("{obstacle}");
    }
    let mut kernel = Kernel::load(64)?;
    drop(Pair::<V4>::new(&mut kernel)?);
    let mut watches = (0..MAX_WATCHERS).map(|_| kernel.watch()).collect::<Result<Vec<_>>>()?;
    let error = kernel.watch().err().context("one too many")?.to_string();
    ensure!(error.contains("8 others watch already"), "{error}");
    watches.truncate(7);
    let mut eighth = kernel.watch()?;
    // None of the seven says that it still watches: in the end there is room. A tick may have begun between the first and the last.
    let end = collect::tick(dataplane::now()) + LEASE;
    let mut ninth = wait_until("a place is free", PATIENCE, || {
        let renewed = eighth.renew().ok().filter(|_| collect::tick(dataplane::now()) >= end);
        renewed.and_then(|_| kernel.watch().ok())
    })?;
    // Who is back gets another place.
    let mut late = watches.pop().context("the seventh")?;
    late.renew()?;
    kernel.run(Hook::Ingress, &refused(), 1)?;
    for watch in [&mut eighth, &mut ninth, &mut late] {
        let event = watch.next_event().context("it is told")?;
        ensure!(u32::from(event.reason) == Reason::NoEndpoints as u32, "{event:?}");
        ensure!(watch.next_event().is_none() && watch.take_lost()? == 0, "once");
    }
    ensure!(
        watches.iter_mut().all(|watch| watch.next_event().is_none()),
        "those who are gone"
    );
    Ok(())
}

/// An agent that makes the tables anew takes the pins away for a moment: who watches goes on.
#[test]
fn those_who_watch_outlive_a_change_of_tables() -> Result<()> {
    if let Some(obstacle) = test_run::obstacle() {
        skip!("{obstacle}");
    }
    let mut kernel = Kernel::load(64)?;
    drop(Pair::<V4>::new(&mut kernel)?);
    let mut watch = kernel.watch()?;
    let (pinned, away) = (kernel.pin().map("event_rings"), kernel.pin().map("away"));
    fs::rename(&pinned, &away)?;
    ensure!(watch.renew()?.is_none() && kernel.watch().is_err(), "they are missed");
    kernel.run(Hook::Ingress, &refused(), 1)?;
    ensure!(watch.next_event().is_some(), "it is told meanwhile");
    fs::rename(&away, &pinned)?;
    ensure!(watch.renew()?.is_none(), "the same tables");
    Ok(())
}

/// A packet that is refused.
fn refused() -> Vec<u8> {
    Packet::first(UDP, SocketAddr::new(V4::PLACES.client, 40_000), V4::PLACES.empty).frame()
}

/// More packets than a small ring has room for.
const PACKETS: u32 = 100;

/// What a ring has no room for is counted for its owner.
#[test]
fn events_that_find_no_room_are_counted() -> Result<()> {
    if let Some(obstacle) = test_run::obstacle() {
        skip!("{obstacle}");
    }
    let mut kernel = Kernel::load(64)?;
    drop(Pair::<V4>::new(&mut kernel)?);
    let mut small = kernel.watch_with(4096)?;
    let large = &mut kernel.watch()?;
    for _ in 0..PACKETS {
        kernel.run(Hook::Ingress, &refused(), 1)?;
    }
    let told = |watch: &mut Watch| std::iter::from_fn(|| watch.next_event()).count();
    let (few, all) = (told(&mut small), told(large));
    ensure!(all == PACKETS as usize && large.take_lost()? == 0, "{all} events");
    ensure!(few > 0 && few < all, "{few} events");
    ensure!(
        small.take_lost()? == (all - few) as u64 && small.take_lost()? == 0,
        "as many as are missing, once"
    );
    Ok(())
}
