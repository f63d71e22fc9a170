//! The agent's Kubernetes source against the test API server: lists, watches, and everything that may happen to them.

use std::{collections::BTreeSet, fs, time::Duration};

use proxy_agent::source::{
    Change,
    kubernetes::{ConfigError, Kubernetes},
};
use proxy_tests::api_server::{ApiServer, Gone, Request, Resource, Verb};
use serde_json::json;
use tokio::runtime::Runtime;

use self::{
    harness::{NODE_NAME, Source, short},
    objects::{edited, labelled, node, numbered, service, service_range, slice},
};

mod convergence;
mod harness;
mod objects;

fn started() -> ApiServer {
    ApiServer::start().expect("the test API server starts")
}

/// The verbs of all requests for a kind.
fn verbs(requests: &[Request], resource: Resource) -> Vec<Verb> {
    requests
        .iter()
        .filter(|request| request.resource == resource)
        .map(|request| request.verb)
        .collect()
}

fn lists(requests: &[Request], resource: Resource) -> usize {
    verbs(requests, resource)
        .into_iter()
        .filter(|verb| matches!(verb, Verb::List { .. }))
        .count()
}

/// behaviour.md 1.1, 1.2
#[test]
fn the_first_list_shows_what_concerns_this_node() {
    const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
    const HEADLESS: &str = "service.kubernetes.io/headless";
    let server = started();
    let mut headless = service("headless");
    headless["spec"]["clusterIP"] = "None".into();
    headless["spec"]["clusterIPs"] = json!(["None"]);
    for object in [
        service("web"),
        headless,
        labelled(service("labelled-headless"), HEADLESS),
        labelled(service("of-another-proxy"), PROXY_NAME),
        labelled(service("other-label"), "app"),
        slice("web-1"),
        labelled(slice("labelled-headless-1"), HEADLESS),
        labelled(slice("of-another-proxy-1"), PROXY_NAME),
        node(NODE_NAME),
        node("worker-2"),
    ] {
        server.apply(object);
    }
    let mut source = Source::start(&server);
    assert_eq!(short(&source.service()), "= other-label web");
    assert_eq!(short(&source.slice()), "= web-1");
    assert_eq!(short(&source.node()), "= worker-1");
}

#[test]
fn an_empty_cluster_is_told_too() {
    let server = started();
    let mut source = Source::start(&server);
    assert_eq!(short(&source.service()), "=");
    assert_eq!(short(&source.slice()), "=");
    assert_eq!(short(&source.node()), "=");
}

#[test]
fn a_list_of_many_pages_is_told_once_and_complete() {
    let server = started();
    let mut names = BTreeSet::new();
    for service in (1..=1203).map(numbered) {
        names.extend(service["metadata"]["name"].as_str().map(str::to_owned));
        server.apply(service);
    }
    server.delay(Duration::from_millis(50));
    let mut source = Source::start(&server);
    let all = names.into_iter().fold("=".to_owned(), |text, name| text + " " + &name);
    assert_eq!(
        short(&source.service()),
        all,
        "the first word about Services is all of them"
    );
    let verbs = verbs(&server.requests(), Resource::Services);
    assert_eq!(verbs[..3], [Verb::List { limit: 500 }, Verb::NextPage, Verb::NextPage]);
}

#[test]
fn a_list_that_expires_midway_is_read_in_one_piece() {
    let server = started();
    for number in 1..=501 {
        server.apply(numbered(number));
    }
    server.forget_pages();
    let mut source = Source::start(&server);
    let Change::Replace(services) = source.service() else {
        panic!("a part of the list was told")
    };
    assert_eq!(services.len(), 501);
    let verbs = verbs(&server.requests(), Resource::Services);
    assert_eq!(
        verbs[..3],
        [Verb::List { limit: 500 }, Verb::NextPage, Verb::List { limit: 0 }]
    );
}

#[test]
fn changes_are_told_one_by_one() {
    let server = started();
    let mut source = Source::start_watching(&server);
    server.apply(service("web"));
    assert_eq!(short(&source.service()), "+ web");
    let mut changed = service("web");
    changed["spec"]["ports"][0]["port"] = 81.into();
    server.apply(changed);
    let Change::Apply(changed) = source.service() else {
        panic!("a change is an Apply")
    };
    let ports = changed.content.expect("it is this proxy's").ports;
    assert_eq!(ports.iter().map(|port| port.port).collect::<Vec<_>>(), [81]);
    server.delete(Resource::Services, "default", "web");
    let Change::Delete(name) = source.service() else {
        panic!("a deletion is a Delete")
    };
    assert_eq!(name.to_string(), "default/web");

    server.apply(slice("web-1"));
    assert_eq!(short(&source.slice()), "+ web-1");
    server.delete(Resource::EndpointSlices, "default", "web-1");
    assert_eq!(short(&source.slice()), "- web-1");

    server.apply(node("worker-2"));
    server.apply(node(NODE_NAME));
    assert_eq!(
        short(&source.node()),
        "+ worker-1",
        "other nodes are none of our business"
    );
    server.delete(Resource::Nodes, "", NODE_NAME);
    assert_eq!(short(&source.node()), "- worker-1");
}

/// behaviour.md 1.1: adding the label acts as a delete, removing it as an add.
#[test]
fn a_label_hides_and_shows_a_living_service() {
    let server = started();
    server.apply(service("web"));
    server.apply(slice("web-1"));
    let mut source = Source::start_watching(&server);
    for label in [
        "service.kubernetes.io/service-proxy-name",
        "service.kubernetes.io/headless",
    ] {
        server.apply(labelled(service("web"), label));
        server.apply(labelled(slice("web-1"), label));
        assert_eq!(short(&source.service()), "- web", "{label}");
        assert_eq!(short(&source.slice()), "- web-1", "{label}");
        server.apply(service("web"));
        server.apply(slice("web-1"));
        assert_eq!(short(&source.service()), "+ web", "{label}");
        assert_eq!(short(&source.slice()), "+ web-1", "{label}");
    }
}

#[test]
fn a_dropped_connection_is_resumed_without_a_list() {
    let server = started();
    server.apply(service("old"));
    let mut source = Source::start_watching(&server);
    server.apply(service("before"));
    assert_eq!(short(&source.service()), "+ before");

    server.fail(503);
    server.drop_watches();
    server.wait_for_watches(0);
    server.apply(service("meanwhile"));
    server.delete(Resource::Services, "default", "old");
    server.allow_all();
    assert_eq!(short(&source.service()), "+ meanwhile");
    assert_eq!(short(&source.service()), "- old");
    server.wait_for_watches(Resource::ALL.len());
    for resource in Resource::ALL {
        assert_eq!(lists(&server.requests(), resource), 1, "{resource:?}");
    }
}

#[test]
fn a_bookmark_saves_the_list_after_history_is_forgotten() {
    let server = started();
    let mut source = Source::start_watching(&server);
    for edition in 0..5 {
        server.apply(edited(service("web"), edition));
        assert_eq!(short(&source.service()), "+ web");
    }
    // The other kinds have seen nothing of it: a real API server tells them of no version by now, and they list again.
    let version = server.version();
    server.compact(Gone::Status);
    server.end_watches();
    server.wait_for_requests("the watch resumed at the bookmark", |requests| {
        verbs(requests, Resource::Services).contains(&Verb::Watch { from: version })
    });
    server.wait_for_watches(Resource::ALL.len());
    server.apply(service("new"));
    assert_eq!(short(&source.service()), "+ new");
    assert_eq!(lists(&server.requests(), Resource::Services), 1);
}

#[test]
fn a_forgotten_version_leads_to_a_new_list() {
    for gone in [Gone::Status, Gone::Event] {
        let server = started();
        server.apply(service("deleted"));
        server.apply(service("stays"));
        let mut source = Source::start_watching(&server);
        server.fail(500);
        server.drop_watches();
        server.wait_for_watches(0);
        server.delete(Resource::Services, "default", "deleted");
        server.apply(service("new"));
        server.compact(gone);
        server.allow_all();
        assert_eq!(
            short(&source.service()),
            "= new stays",
            "{gone:?}: neither an empty list nor a part first"
        );
        server.wait_for_watches(Resource::ALL.len());
        server.apply(service("newer"));
        assert_eq!(short(&source.service()), "+ newer", "{gone:?}");
    }
}

#[test]
fn a_watch_that_expires_leads_to_a_new_list() {
    let server = started();
    server.apply(service("web"));
    let mut source = Source::start_watching(&server);
    server.expire_watches();
    assert_eq!(short(&source.service()), "= web");
    assert_eq!(short(&source.slice()), "=");
    assert_eq!(short(&source.node()), "=");
}

#[test]
fn a_forbidden_kind_is_named_and_recovers() {
    let server = started();
    server.apply(service("web"));
    server.apply(slice("web-1"));
    server.forbid(Resource::Services);
    let mut source = Source::start(&server);
    let problems = source.problems("watch services");
    let [problem] = &problems[..] else {
        panic!("one problem expected: {problems:?}")
    };
    assert_eq!(problem.object, "watch services");
    for part in [
        "forbidden",
        "list and watch on services",
        "manifests/base/rbac.yaml",
        "cannot list resource",
    ] {
        assert!(problem.reason.contains(part), "{part:?} is missing: {problem}");
    }
    assert_eq!(short(&source.slice()), "= web-1", "the other kinds go on");

    server.wait_for_requests("three more attempts", |requests| {
        lists(requests, Resource::Services) >= 4
    });
    server.allow_all();
    assert_eq!(source.problems("watch services"), [], "said once, then taken back");
    assert_eq!(short(&source.service()), "= web");
}

/// behaviour.md 4.7
#[test]
fn service_ranges_are_followed() {
    let server = started();
    let mut source = Source::start(&server);
    assert_eq!(short(&source.service_range()), "= kubernetes");
    server.wait_for_watches(Resource::ALL.len());
    server.apply(service_range("more", "10.97.0.0/16"));
    assert_eq!(short(&source.service_range()), "+ more");
    server.delete(Resource::ServiceCidrs, "", "more");
    assert_eq!(short(&source.service_range()), "- more");
}

/// behaviour.md 4.7: an API server before 1.33 has no ServiceCIDRs, which is nothing wrong and holds up nothing.
#[test]
fn an_api_server_without_service_ranges_has_none() {
    let server = started();
    server.apply(service("web"));
    server.forget_kind(Resource::ServiceCidrs);
    let mut source = Source::start(&server);
    assert_eq!(short(&source.service_range()), "=");
    assert_eq!(short(&source.service()), "= web");
    assert_eq!(short(&source.slice()), "=");
    assert_eq!(short(&source.node()), "=");
    server.wait_for_watches(Resource::ALL.len() - 1);
    server.apply(service("new"));
    assert_eq!(short(&source.service()), "+ new");
    assert!(source.problem_free(), "nothing is wrong");
    assert_eq!(
        lists(&server.requests(), Resource::ServiceCidrs),
        1,
        "nor asked for again soon"
    );
}

/// The API server was replaced by an older one.
#[test]
fn service_ranges_that_the_api_server_forgets_are_gone() {
    let server = started();
    let mut source = Source::start(&server);
    assert_eq!(short(&source.service_range()), "= kubernetes");
    server.wait_for_watches(Resource::ALL.len());
    server.forget_kind(Resource::ServiceCidrs);
    server.drop_watches();
    assert_eq!(short(&source.service_range()), "=");
    assert!(source.problem_free(), "nothing is wrong");
}

#[test]
fn refused_credentials_are_named() {
    let server = started();
    server.fail(401);
    let mut source = Source::start(&server);
    for kind in ["services", "endpointslices", "nodes"] {
        let problems = source.problems(&format!("watch {kind}"));
        let [problem] = &problems[..] else {
            panic!("one problem expected: {problems:?}")
        };
        assert!(
            problem.reason.contains("unauthorized") && problem.reason.contains("credentials"),
            "{problem}"
        );
    }
    server.allow_all();
    assert_eq!(source.problems("watch services"), []);
}

#[test]
fn a_server_that_goes_and_comes_back_changes_nothing() {
    let mut server = started();
    server.apply(service("web"));
    let mut source = Source::start_watching(&server);
    server.stop();
    let problems = source.problems("watch services");
    let [problem] = &problems[..] else {
        panic!("one problem expected: {problems:?}")
    };
    for part in ["can't reach", &server.address().to_string(), "Connection refused"] {
        assert!(problem.reason.contains(part), "{part:?} is missing: {problem}");
    }
    server.restart().expect("the port is free again");
    assert_eq!(
        source.problems("watch services"),
        [],
        "taken back although no object changed"
    );
    // What it had to say may be another's by now, under the same version.
    assert_eq!(
        short(&source.service()),
        "= web",
        "neither an empty list nor a part first"
    );
    server.wait_for_watches(Resource::ALL.len());
    server.apply(service("new"));
    assert_eq!(short(&source.service()), "+ new");
    assert_eq!(lists(&server.requests(), Resource::Services), 2);
}

#[test]
fn a_server_that_is_not_there_yet_is_waited_for() {
    let mut server = started();
    server.apply(service("web"));
    server.stop();
    let mut source = Source::start(&server);
    assert_eq!(source.problems("watch services").len(), 1);
    server.restart().expect("the port is free again");
    assert_eq!(source.problems("watch services"), []);
    assert_eq!(short(&source.service()), "= web");
}

#[test]
fn a_server_that_speaks_no_tls_is_named() {
    let server = started();
    let directory = tempfile::tempdir().expect("a directory");
    let kubeconfig = server.kubeconfig(directory.path()).expect("a kubeconfig");
    let text = fs::read_to_string(&kubeconfig).expect("it was written above");
    fs::write(&kubeconfig, text.replace("http://", "https://")).expect("a file");
    let mut source = Source::start_with(directory, &kubeconfig);
    let problems = source.problems("watch services");
    let [problem] = &problems[..] else {
        panic!("one problem expected: {problems:?}")
    };
    assert!(
        problem
            .reason
            .contains(&format!("can't reach https://{}", server.address())),
        "{problem}"
    );
}

#[test]
fn an_unreadable_object_is_named_and_left_out() {
    let server = started();
    let nonsense = || Some(("/spec/ports/0/port", json!("http")));
    let garble = |value| server.garble(Resource::Services, "default", "nonsense", value);
    garble(nonsense());
    server.apply(service("nonsense"));
    server.apply(service("web"));
    let mut source = Source::start(&server);
    let problems = source.problems("watch services");
    let [problem] = &problems[..] else {
        panic!("one problem expected: {problems:?}")
    };
    assert_eq!(problem.object, "Service default/nonsense");
    assert!(problem.reason.contains("http"), "what is wrong is missing: {problem}");
    assert_eq!(short(&source.service()), "= web", "the rest of the list goes on");

    server.wait_for_watches(Resource::ALL.len());
    garble(None);
    server.apply(edited(service("nonsense"), 1));
    assert_eq!(source.problems("watch services"), []);
    assert_eq!(short(&source.service()), "+ nonsense");

    garble(nonsense());
    server.apply(edited(service("nonsense"), 2));
    assert_eq!(source.problems("watch services").len(), 1);
    assert_eq!(short(&source.service()), "- nonsense", "as after a restart");
    server.apply(service("after"));
    assert_eq!(short(&source.service()), "+ after", "the rest of the watch goes on");
    server.delete(Resource::Services, "default", "nonsense");
    assert_eq!(source.problems("watch services"), [], "gone with its object");
}

#[test]
fn it_ends_when_nobody_listens() {
    let server = started();
    let source = Source::start_watching(&server);
    let Source { runtime, events, .. } = source;
    drop(events);
    server.wait_for_watches(0);
    drop(runtime);
}

#[test]
fn an_unusable_kubeconfig_is_named() {
    let runtime = Runtime::new().expect("a runtime");
    let directory = tempfile::tempdir().expect("a directory");
    let missing = directory.path().join("missing");
    let nonsense = directory.path().join("nonsense");
    fs::write(&nonsense, "clusters: 7").expect("a file");
    for path in [&missing, &nonsense] {
        let error = runtime
            .block_on(Kubernetes::new(Some(path), NODE_NAME.to_owned()))
            .err();
        assert!(matches!(error, Some(ConfigError::Kubeconfig { .. })), "{error:?}");
        let text = error.map(|error| error.to_string()).unwrap_or_default();
        assert!(text.contains(&path.display().to_string()), "{text}");
    }
}
