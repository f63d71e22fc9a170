//! Programs at the hooks of the node's devices: ours, and those of others, which see packets before or after them.

use std::collections::BTreeSet;

use anyhow::Result;
use aya::programs::SchedClassifier;
use netlink_packet_route::link::XdpAttached;

use super::Findings;
use crate::dataplane::{
    hook::Hook,
    network::{self, DeviceHooks},
    object::os_error,
    pin::{self, PinDirectory},
    tcx,
};

pub(super) fn examine(pin: &PinDirectory) -> Findings {
    let mut findings = Findings::of("programs");
    let devices = match network::device_hooks() {
        Ok(devices) => devices,
        Err(error) => {
            findings.warning(
                "devices",
                format!("{error:#}"),
                "it isn't known what other programs there are",
                "run with CAP_NET_ADMIN",
            );
            return findings;
        }
    };
    let ours = match our_programs(pin) {
        Ok(ours) => ours,
        Err(error) => {
            findings.warning(
                "pinned links",
                format!("{error:#}"),
                "our programs can't be told from those of others",
                "run as root, or with CAP_BPF",
            );
            return findings;
        }
    };
    let (mut served, mut untold) = (0, None);
    for device in &devices {
        match chains(device) {
            Ok(chains) => {
                served += usize::from(tell(&mut findings, device, &chains, &ours));
            }
            Err(reason) => untold = Some(reason),
        }
        tell_xdp(&mut findings, device, &ours);
    }
    if let Some(reason) = untold {
        findings.ok("tcx programs", format!("not listed: {reason}"));
    }
    findings.ok(
        "devices",
        format!("{served} of {} have programs of ours by tcx", devices.len()),
    );
    findings
}

/// A program that is attached.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Attached {
    id: u32,
    name: String,
}

/// The programs at a hook, in the order in which they run.
type Chain = (Hook, Vec<Attached>);

fn chains(device: &DeviceHooks) -> Result<Vec<Chain>, String> {
    let mut chains = Vec::new();
    for hook in Hook::ALL {
        match SchedClassifier::query_tcx(&device.name, hook.attach_type()) {
            Ok((_, programs)) => {
                let program = |info: &aya::programs::ProgramInfo| Attached {
                    id: info.id(),
                    name: info.name_as_str().unwrap_or("without a name").to_owned(),
                };
                chains.push((hook, programs.iter().map(program).collect()));
            }
            Err(error) => match os_error(&error) {
                Some(libc::EPERM) => return Err("that takes CAP_SYS_ADMIN".to_owned()),
                Some(libc::EINVAL) => return Err("this kernel has no tcx".to_owned()),
                // The device went since it was listed.
                _ => return Ok(chains),
            },
        }
    }
    Ok(chains)
}

/// Ids of the programs that our links have.
fn our_programs(pin: &PinDirectory) -> Result<BTreeSet<u32>> {
    let mut ours = BTreeSet::new();
    for path in pin::entries(&pin.links())? {
        ours.extend(tcx::attached_program(&path)?);
    }
    Ok(ours)
}

/// Tells who else is at a device's hooks; whether we are there.
fn tell(findings: &mut Findings, device: &DeviceHooks, chains: &[Chain], ours: &BTreeSet<u32>) -> bool {
    let mut is_served = false;
    for (hook, programs) in chains {
        let place = programs.iter().position(|program| ours.contains(&program.id));
        is_served |= place.is_some();
        let others = programs.iter().any(|program| !ours.contains(&program.id));
        if let (Some(place), true) = (place, others) {
            let list: Vec<String> = programs
                .iter()
                .map(|program| {
                    let owner = if ours.contains(&program.id) { ", ours" } else { "" };
                    format!("{} ({}{owner})", program.name, program.id)
                })
                .collect();
            let subject = format!("{} {}", device.name, hook.name());
            let found = format!("tcx, in this order: {}", list.join(", "));
            // At ingress ours is to be last, at egress first (see `Hook::order`).
            let is_right = match hook {
                Hook::Ingress => place + 1 == programs.len(),
                Hook::Egress => place == 0,
            };
            if is_right {
                findings.ok(subject, found);
            } else {
                findings.warning(
                    subject,
                    found,
                    "a program on the inner side of ours sees endpoints' addresses where it may expect those of Services",
                    "start the agent after the owner of the other programs: at ingress ours runs last, at egress first",
                );
            }
        }
    }
    for (hook, filters) in [("ingress", &device.ingress_filters), ("egress", &device.egress_filters)] {
        if filters.is_empty() || !is_served {
            continue;
        }
        findings.ok(
            format!("{} {hook}", device.name),
            format!("clsact filters after tcx: {}", filters.join(", ")),
        );
    }
    is_served
}

fn tell_xdp(findings: &mut Findings, device: &DeviceHooks, ours: &BTreeSet<u32>) {
    let Some((mode, id)) = &device.xdp else { return };
    let how = match mode {
        XdpAttached::Driver => "native",
        XdpAttached::SocketBuffer => "generic",
        XdpAttached::Hardware => "in hardware",
        _ => "in several modes",
    };
    let subject = format!("{} XDP", device.name);
    if id.is_some_and(|id| ours.contains(&id)) {
        findings.ok(subject, format!("ours, {how}"));
    } else {
        findings.warning(
            subject,
            format!("another owner's program, {how}"),
            "it sees packets first; ours can't be attached there (--xdp)",
            "leave --xdp off for this device, or remove the other program",
        );
    }
}
