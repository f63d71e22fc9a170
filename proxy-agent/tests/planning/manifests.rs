//! A directory of manifests, read and watched.

use std::{fs, os::unix::fs::symlink, path::Path, time::Duration};

use proxy_agent::source::{Event, manifests};
use tempfile::TempDir;
use tokio::{
    sync::mpsc::{self, Receiver},
    task::JoinHandle,
    time::timeout,
};

use crate::world::{NODE, World};

/// How long a change may take to be noticed on a busy machine.
const DEADLINE: Duration = Duration::from_secs(20);

fn manifest(name: &str, address: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{namespace: ns, name: {name}}}\n\
         spec: {{clusterIPs: ['{address}'], ports: [{{port: 80}}]}}\n"
    )
}

/// What the directory's Services are served at, and what is wrong with it.
fn read(directory: &Path) -> (Vec<String>, Vec<String>) {
    let mut world = World::unlisted();
    world.apply(manifests::read(directory, NODE).expect("a readable directory"));
    (addresses(&world), problems(&world, directory))
}

fn addresses(world: &World) -> Vec<String> {
    let address = |line: &String| {
        line.split(' ')
            .nth(1)
            .map(|text| text.replace(":80/TCP", ""))
            .expect("an address")
    };
    world.lines().iter().map(address).collect()
}

fn problems(world: &World, directory: &Path) -> Vec<String> {
    let prefix = format!("{}/", directory.display());
    world
        .problems()
        .iter()
        .map(|problem| problem.replace(&prefix, ""))
        .collect()
}

fn directory(files: &[(&str, String)]) -> TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    for (name, text) in files {
        fs::write(directory.path().join(name), text).expect("a file");
    }
    directory
}

#[test]
fn files_of_all_names_and_forms_are_read() {
    let json = |name: &str, address: &str| {
        format!(
            "{{\"apiVersion\": \"v1\", \"kind\": \"Service\",\t\"metadata\": {{\"namespace\": \"ns\", \"name\": \"{name}\"}}, \
             \"spec\": {{\"clusterIP\": \"{address}\", \"ports\": [{{\"port\": 80}}]}}}}\n"
        )
    };
    let list = "apiVersion: v1\nkind: ServiceList\nitems:\n- metadata: {namespace: ns, name: item}\n  spec: {clusterIP: 10.96.0.6, \
                ports: [{port: 80}]}\n";
    let directory = directory(&[
        (
            "a.yaml",
            format!(
                "---\n{}---\n---\n{}",
                manifest("a", "10.96.0.1"),
                manifest("b", "10.96.0.2")
            ),
        ),
        ("b.yml", manifest("c", "10.96.0.3")),
        ("c.json", json("d", "10.96.0.4") + &json("e", "10.96.0.5")),
        ("d.yaml", list.to_owned()),
        (".hidden.yaml", manifest("hidden", "10.96.0.7")),
        ("notes.txt", manifest("text", "10.96.0.8")),
    ]);
    fs::create_dir(directory.path().join("sub")).expect("a directory");
    let expected = [
        "10.96.0.1",
        "10.96.0.2",
        "10.96.0.3",
        "10.96.0.4",
        "10.96.0.5",
        "10.96.0.6",
    ];
    assert_eq!(
        read(directory.path()),
        (expected.map(str::to_owned).to_vec(), Vec::new())
    );
}

/// behaviour.md 4.7: cluster-wide objects have no namespace, not even that of others without one.
#[test]
fn service_ranges_are_read_from_files() {
    let range = |name: &str, range: &str| {
        format!(
            "apiVersion: networking.k8s.io/v1\nkind: ServiceCIDR\nmetadata: {{name: {name}}}\nspec: {{cidrs: [{range}]}}\n"
        )
    };
    let directory = directory(&[
        (
            "a.yaml",
            range("kubernetes", "10.96.0.0/16") + "---\n" + &range("more", "fd00:96::/112"),
        ),
        ("b.yaml", range("more", "10.97.0.0/16")),
    ]);
    let mut world = World::unlisted();
    world.apply(manifests::read(directory.path(), NODE).expect("a directory"));
    let mut ranges: Vec<String> = world.model.service_ranges().map(|range| range.to_string()).collect();
    ranges.sort();
    assert_eq!(ranges, ["10.96.0.0/16", "fd00:96::/112"]);
    assert_eq!(
        problems(&world, directory.path()),
        ["b.yaml: ServiceCIDR more is in a.yaml already: it is served from there"]
    );
}

#[test]
fn what_is_wrong_is_named_by_file_document_and_field() {
    let file = [
        manifest("ok", "10.96.0.1"),
        "apiVersion: v1\nkind: Service\nmetadata: {name: typed}\nspec: {ports: [{port: eighty}]}\n".to_owned(),
        manifest("unknown", "10.96.0.2") + "stauts: {}\n",
        "just text\n".to_owned(),
        "apiVersion: v1\n".to_owned(),
        "kind: Service\n".to_owned(),
        "apiVersion: v1\nkind: Service\nspec: {}\n".to_owned(),
        "apiVersion: discovery.k8s.io/v1beta1\nkind: EndpointSlice\nmetadata: {name: old}\n".to_owned(),
        "apiVersion: v1\nkind: List\nitems: [{apiVersion: v1, kind: Service, metadata: {name: x}, spec: {ports: 1}}]\n"
            .to_owned(),
    ];
    let directory = directory(&[("web.yaml", file.join("---\n")), ("z.json", "{\"kind\": ".to_owned())]);
    fs::write(directory.path().join("latin.yaml"), b"caf\xe9").expect("a file");
    symlink("missing", directory.path().join("link.yaml")).expect("a link");
    symlink("/dev/null", directory.path().join("pipe.yaml")).expect("a link");
    fs::create_dir(directory.path().join("sub.yaml")).expect("a directory");
    let (addresses, problems) = read(directory.path());
    assert_eq!(addresses, ["10.96.0.1", "10.96.0.2"]);
    let expected = [
        "latin.yaml: can't be read: stream did not contain valid UTF-8",
        "link.yaml: can't be read: No such file or directory (os error 2)",
        "pipe.yaml: can't be read: it is no regular file",
        "sub.yaml: can't be read: it is a directory: move its files up, or rename it",
        "web.yaml document 2 (Service typed): spec.ports[0].port: invalid type: string \"eighty\", expected i32",
        "web.yaml document 3 (Service ns/unknown): stauts: unknown field; did you mean status?",
        "web.yaml document 4: is no object: it has no fields",
        "web.yaml document 5: kind: missing",
        "web.yaml document 6: apiVersion: missing",
        "web.yaml document 7 (Service): metadata.name: missing",
        "web.yaml document 8: apiVersion: discovery.k8s.io/v1beta1 is no longer served by Kubernetes: write \
         discovery.k8s.io/v1",
        "web.yaml document 9 items[0] (Service x): spec.ports: invalid type: integer `1`, expected a sequence",
        "z.json document 1: EOF while parsing a value at line 1 column 9",
    ];
    assert_eq!(problems, expected);
}

#[test]
fn an_object_in_two_files_is_served_from_the_first() {
    let directory = directory(&[
        ("a.yaml", manifest("web", "10.96.0.1")),
        (
            "b.yaml",
            manifest("web", "10.96.0.2") + "---\n" + &manifest("other", "10.96.0.3"),
        ),
    ]);
    let (addresses, problems) = read(directory.path());
    assert_eq!(addresses, ["10.96.0.3", "10.96.0.1"]);
    assert_eq!(
        problems,
        ["b.yaml: Service ns/web is in a.yaml already: it is served from there"]
    );
}

/// A watched directory, and what an agent makes of it.
struct Watched {
    world: World,
    events: Receiver<Event>,
    task: JoinHandle<()>,
    path: std::path::PathBuf,
}

impl Watched {
    fn start(path: &Path) -> Self {
        let (sender, events) = mpsc::channel(16);
        Self {
            world: World::unlisted(),
            events,
            task: tokio::spawn(manifests::watch(path.to_owned(), NODE.to_owned(), sender)),
            path: path.to_owned(),
        }
    }

    /// Takes in what the source says until `is_reached`.
    async fn until(&mut self, what: &str, is_reached: impl Fn(&World) -> bool) {
        let reach = async {
            while !is_reached(&self.world) {
                let event = self.events.recv().await.expect("the source runs");
                self.world.apply([event]);
            }
        };
        let reached = timeout(DEADLINE, reach).await;
        assert!(
            reached.is_ok(),
            "{what}: {:?}, {:?}",
            self.world.lines(),
            self.world.problems()
        );
    }

    async fn until_served(&mut self, what: &str, expected: &[&str]) {
        self.until(what, |world| world.model.is_synced() && addresses(world) == expected)
            .await;
    }

    /// Waits until something is, or nothing is any more, wrong; what is served must be what it was.
    async fn until_problem(&mut self, text: &str, served: &[&str]) {
        self.until(text, |world| match world.problems().as_slice() {
            [] => text.is_empty(),
            [problem] => !text.is_empty() && problem.contains(text),
            _ => false,
        })
        .await;
        assert_eq!(addresses(&self.world), served, "{text}");
    }

    fn write(&self, file: &str, text: &str) {
        fs::write(self.path.join(file), text).expect("a file");
    }

    /// Writes as editors do: into another file that then takes the place of the first.
    fn replace(&self, file: &str, text: &str) {
        let other = self.path.join(".swap");
        fs::write(&other, text).expect("a file");
        fs::rename(other, self.path.join(file)).expect("renamed");
    }

    async fn stop(self) {
        drop(self.events);
        timeout(DEADLINE, self.task)
            .await
            .expect("it ends with its listener")
            .expect("it does not panic");
    }
}

#[tokio::test]
async fn changes_are_followed() {
    let directory = directory(&[("a.yaml", manifest("a", "10.96.0.1"))]);
    let mut watched = Watched::start(directory.path());
    watched.until_served("start", &["10.96.0.1"]).await;
    watched.write("b.yaml", &manifest("b", "10.96.0.2"));
    watched.until_served("a new file", &["10.96.0.1", "10.96.0.2"]).await;
    watched.write("a.yaml", &manifest("a", "10.96.0.3"));
    watched
        .until_served("a file written anew", &["10.96.0.3", "10.96.0.2"])
        .await;
    watched.replace("a.yaml", &manifest("a", "10.96.0.4"));
    watched
        .until_served("a file replaced", &["10.96.0.4", "10.96.0.2"])
        .await;
    fs::rename(directory.path().join("a.yaml"), directory.path().join("c.yaml")).expect("renamed");
    watched.write("d.yaml", &manifest("d", "10.96.0.5"));
    watched
        .until_served("a file renamed", &["10.96.0.4", "10.96.0.2", "10.96.0.5"])
        .await;
    fs::remove_file(directory.path().join("c.yaml")).expect("removed");
    watched
        .until_served("a file removed", &["10.96.0.2", "10.96.0.5"])
        .await;
    watched.stop().await;
}

#[tokio::test]
async fn a_new_service_is_never_served_without_its_endpoints() {
    let directory = directory(&[]);
    let mut watched = Watched::start(directory.path());
    watched.until_served("start", &[]).await;
    let slice = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
                 metadata: {namespace: ns, name: a-1, labels: {kubernetes.io/service-name: a}}\n\
                 addressType: IPv4\nports: [{name: '', port: 8080}]\nendpoints: [{addresses: [10.0.0.1]}]\n";
    watched.write("a.yaml", &(manifest("a", "10.96.0.1") + "---\n" + slice));
    watched.until("served", |world| !world.lines().is_empty()).await;
    assert_eq!(watched.world.lines(), ["ns/a: 10.96.0.1:80/TCP -> 10.0.0.1:8080 | -"]);
    fs::remove_file(directory.path().join("a.yaml")).expect("removed");
    watched
        .until("gone", |world| {
            world.lines() != ["ns/a: 10.96.0.1:80/TCP -> 10.0.0.1:8080 | -"]
        })
        .await;
    assert!(watched.world.lines().is_empty());
    watched.stop().await;
}

#[tokio::test]
async fn the_last_of_many_changes_is_not_lost() {
    let directory = directory(&[]);
    let mut watched = Watched::start(directory.path());
    watched.until_served("start", &[]).await;
    for last in 1..=200 {
        watched.write("a.yaml", &manifest("a", &format!("10.96.0.{last}")));
    }
    watched.until_served("the last", &["10.96.0.200"]).await;
    watched.stop().await;
}

#[tokio::test]
async fn bad_input_takes_nothing_away() {
    let both = manifest("a", "10.96.0.1") + "---\n" + &manifest("b", "10.96.0.2");
    let directory = directory(&[("a.yaml", both)]);
    let mut watched = Watched::start(directory.path());
    watched.until_served("start", &["10.96.0.1", "10.96.0.2"]).await;
    let half = manifest("a", "10.96.0.3") + "---\nkind: [\n";
    watched.write("a.yaml", &half);
    watched
        .until_served("the readable half", &["10.96.0.3", "10.96.0.2"])
        .await;
    watched
        .until_problem("a.yaml document 2: ", &["10.96.0.3", "10.96.0.2"])
        .await;
    fs::remove_file(directory.path().join("a.yaml")).expect("removed");
    symlink("a.yaml", directory.path().join("a.yaml")).expect("a link to itself");
    watched.write("b.yaml", &manifest("c", "10.96.0.4"));
    watched
        .until_served("beside the unreadable", &["10.96.0.3", "10.96.0.2", "10.96.0.4"])
        .await;
    watched
        .until_problem("a.yaml: can't be read: ", &["10.96.0.3", "10.96.0.2", "10.96.0.4"])
        .await;
    watched.replace("a.yaml", &manifest("a", "10.96.0.5"));
    watched.until_served("repaired", &["10.96.0.5", "10.96.0.4"]).await;
    watched.until_problem("", &["10.96.0.5", "10.96.0.4"]).await;
    watched.stop().await;
}

/// behaviour.md 9.1: never program from a partial list after a restart.
#[tokio::test]
async fn what_can_not_be_read_at_the_start_is_not_taken_for_gone() {
    let directory = directory(&[
        ("a.yaml", manifest("a", "10.96.0.1")),
        ("b.yaml", manifest("b", "10.96.0.2")),
        ("c.yaml", manifest("c", "10.96.0.3")),
    ]);
    let mut before = World::unlisted();
    before.apply(manifests::read(directory.path(), NODE).expect("a readable directory"));
    // While no agent runs, one file is damaged and another one goes.
    fs::write(directory.path().join("a.yaml"), "kind: [").expect("a file");
    fs::remove_file(directory.path().join("c.yaml")).expect("removed");
    let mut watched = Watched::start(directory.path());
    watched.world.frontends = before.frontends;
    watched
        .until_problem("a.yaml document 1: ", &["10.96.0.1", "10.96.0.2", "10.96.0.3"])
        .await;
    watched.write("d.yaml", &manifest("d", "10.96.0.4"));
    watched
        .until_served(
            "changes meanwhile",
            &["10.96.0.1", "10.96.0.2", "10.96.0.3", "10.96.0.4"],
        )
        .await;
    watched.write("a.yaml", &manifest("a", "10.96.0.5"));
    watched
        .until_served("repaired", &["10.96.0.5", "10.96.0.2", "10.96.0.4"])
        .await;
    watched.stop().await;
}

#[tokio::test]
async fn an_object_falls_to_the_other_file_that_holds_it() {
    let directory = directory(&[
        ("a.yaml", manifest("web", "10.96.0.1")),
        ("b.yaml", manifest("web", "10.96.0.2")),
    ]);
    let mut watched = Watched::start(directory.path());
    watched.until_served("start", &["10.96.0.1"]).await;
    fs::remove_file(directory.path().join("a.yaml")).expect("removed");
    watched.until_served("the other", &["10.96.0.2"]).await;
    watched.until_problem("", &["10.96.0.2"]).await;
    watched.stop().await;
}

#[tokio::test]
async fn a_mounted_config_map_is_followed() {
    let directory = directory(&[]);
    let version = |name: &str, address: &str| {
        fs::create_dir(directory.path().join(name)).expect("a directory");
        fs::write(directory.path().join(name).join("a.yaml"), manifest("a", address)).expect("a file");
        // As the kubelet does it: the link to the version is swapped by one rename.
        symlink(name, directory.path().join("..data_tmp")).expect("a link");
        fs::rename(directory.path().join("..data_tmp"), directory.path().join("..data")).expect("renamed");
    };
    version("..2026_1", "10.96.0.1");
    symlink("..data/a.yaml", directory.path().join("a.yaml")).expect("a link");
    let mut watched = Watched::start(directory.path());
    watched.until_served("start", &["10.96.0.1"]).await;
    version("..2026_2", "10.96.0.2");
    watched.until_served("swapped", &["10.96.0.2"]).await;
    watched.stop().await;
}

#[tokio::test]
async fn a_directory_is_waited_for_and_its_loss_takes_nothing_away() {
    let parent = directory(&[]);
    let path = parent.path().join("manifests");
    let mut watched = Watched::start(&path);
    watched.until_problem("manifests: can't be read: ", &[]).await;
    assert!(!watched.world.model.is_synced(), "nothing was listed");
    let elsewhere = parent.path().join("elsewhere");
    fs::create_dir(&elsewhere).expect("a directory");
    fs::write(elsewhere.join("a.yaml"), manifest("a", "10.96.0.1")).expect("a file");
    fs::rename(&elsewhere, &path).expect("renamed");
    watched.until_served("it is there", &["10.96.0.1"]).await;
    watched.until_problem("", &["10.96.0.1"]).await;
    fs::rename(&path, &elsewhere).expect("renamed");
    watched
        .until_problem("manifests: can't be read: ", &["10.96.0.1"])
        .await;
    fs::rename(&elsewhere, &path).expect("renamed");
    watched.until_problem("", &["10.96.0.1"]).await;
    watched.write("a.yaml", &manifest("a", "10.96.0.2"));
    watched.until_served("it is watched again", &["10.96.0.2"]).await;
    watched.stop().await;
}
