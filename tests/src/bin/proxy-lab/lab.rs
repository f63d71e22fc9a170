//! `lab up|down|status`: a lab that stands without a process of its owner.

use std::{env, fs::File, os::unix::process::CommandExt as _, process, thread};

use anyhow::{Context as _, Result, ensure};
use clap::{Args, Subcommand};
use proxy_tests::lab::{self, AgentOptions, Family, Standing, agent_binary, example, standing};

/// What to do with a standing lab
#[derive(Debug, Subcommand)]
pub(crate) enum Lab {
    /// Raise two nodes with pods, servers and an agent on each, serving manifests/examples
    Up(Name),
    /// Remove it
    Down(Name),
    /// Say what stands and how to look inside
    Status,
    /// Answer requests in the pods of a lab until killed (started by `up`)
    #[command(hide = true)]
    Serve(Name),
}

/// Which lab
#[derive(Debug, Args)]
pub(crate) struct Name {
    /// Its name: a letter, then letters and digits
    #[arg(long, default_value = "hand", value_parser = parse_name)]
    name: String,
}

/// A name without a dash: prefixes of two labs must not start alike, nor like those of tests (a process id).
fn parse_name(name: &str) -> Result<String, String> {
    let plain = name.chars().all(|character| character.is_ascii_alphanumeric());
    if plain && name.starts_with(|first: char| first.is_ascii_alphabetic()) {
        Ok(name.to_owned())
    } else {
        Err("a letter, then letters and digits".to_owned())
    }
}

impl Lab {
    pub(crate) fn run(self) -> Result<()> {
        match self {
            Self::Up(Name { name }) => up(&name),
            Self::Down(Name { name }) => {
                let lab = Standing::find(&name).with_context(|| format!("no lab {name} stands"))?;
                lab.remove()?;
                println!("{name} is gone");
                Ok(())
            }
            Self::Status => {
                status();
                Ok(())
            }
            Self::Serve(Name { name }) => serve(&name),
        }
    }
}

fn up(name: &str) -> Result<()> {
    ensure!(
        Standing::find(name).is_none(),
        "lab {name} stands already: `cargo xtask lab down --name {name}` removes it"
    );
    let mut lab = example::cluster().standing(name).build()?;
    start_servers(&lab, name)?;
    lab.apply_examples()?;
    for node in lab.nodes() {
        let options = AgentOptions {
            leave_running: true,
            ..AgentOptions::default()
        };
        lab.start_agent_with(node.name(), options)?;
    }
    lab.keep();
    println!("{}", describe(&lab, name)?);
    Ok(())
}

/// Starts a process that answers in the pods, and waits until it does.
pub(crate) fn start_servers(lab: &lab::Lab, name: &str) -> Result<()> {
    let log = File::create(lab.directory().join("log/servers.log"))?;
    let mut servers = process::Command::new(env::current_exe()?);
    servers
        .args(["lab", "serve", "--name", name])
        .stdin(process::Stdio::null());
    servers.stdout(log.try_clone()?).stderr(log).process_group(0);
    lab.adopt(&servers.spawn()?)?;
    for (pod, port) in example::servers() {
        let to = lab.pod(pod).addresses().with_port(Family::V6, port);
        lab::wait_until(&format!("the server in {pod} listens"), lab::PATIENCE, || {
            lab.pod(pod).namespace().run(|| lab::tcp_request(to)).ok()
        })?;
    }
    Ok(())
}

fn serve(name: &str) -> Result<()> {
    let lab = Standing::find(name).with_context(|| format!("no lab {name} stands"))?;
    let _servers = example::serve(lab.prefix())?;
    loop {
        thread::park();
    }
}

fn status() {
    let labs = standing();
    if labs.is_empty() {
        println!("no lab stands; `cargo xtask lab up` raises one");
    }
    for lab in labs {
        let processes = lab.processes().len();
        println!(
            "{}: files in {}, {processes} processes (agents, servers)",
            lab.prefix(),
            lab.directory().display()
        );
        println!("  nsenter --net=/run/netns/{}-client", lab.prefix());
    }
}

/// How to look inside a lab.
pub(crate) fn describe(lab: &lab::Lab, name: &str) -> Result<String> {
    let node = &lab.nodes()[0];
    let agent = agent_binary()?;
    let enter = |namespace: &lab::Namespace| format!("nsenter --net={}", namespace.path().display());
    let pins = lab.pin_directory(node.name());
    Ok(format!(
        "Look inside:
  {client} bash    # a shell in the pod `client`
  {client} bash -c 'exec 3<>/dev/tcp/10.96.0.80/80; echo >&3; head -1 <&3'    # which backend answers?
  {on_node} bash    # a shell on {node}
  {agent} services --pin-dir {pins}
  {agent} flows --pin-dir {pins}
  {agent} status --pin-dir {pins}
  bpftool map dump pinned {table}
  cat {log}
Change what is served: edit the files in {manifests}
Remove it: cargo xtask lab down --name {name}",
        client = enter(lab.namespace("client")),
        on_node = enter(node.namespace()),
        node = node.name(),
        agent = agent.display(),
        pins = pins.display(),
        table = lab.pinned_table(node.name(), "services_v4")?.display(),
        log = lab.agent_log(node.name()).display(),
        manifests = lab.manifests().display(),
    ))
}
