//! The objects and all that ever happened to them. One version counter for all kinds, as etcd has.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{resource::Resource, selector::Selector};

/// Identity of an object, in the order lists have.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) resource: Resource,
    /// Empty for a Node or a ServiceCIDR
    pub(super) namespace: String,
    pub(super) name: String,
}

impl Key {
    /// Where the object is on a real API server.
    pub(super) fn path(&self) -> String {
        self.resource.path_of(&self.namespace, &self.name)
    }
}

#[derive(Default)]
pub(super) struct Store {
    objects: BTreeMap<Key, Value>,
    history: Vec<Change>,
    /// Neither a watch nor a list's next page may start before this version.
    compacted: u64,
}

/// What happened at one version: an object came, changed or went.
struct Change {
    version: u64,
    key: Key,
    before: Option<Value>,
    after: Option<Value>,
}

/// One page of a list.
pub(super) struct Page {
    pub(super) objects: Vec<Value>,
    /// The version the list shows, the same on all its pages
    pub(super) version: u64,
    /// Where the next page starts, if there is one, and how many objects are still to come
    pub(super) rest: Option<(String, usize)>,
}

/// What a watcher is told.
#[derive(Clone)]
pub(super) struct Event {
    /// `ADDED`, `MODIFIED` or `DELETED`
    pub(super) kind: &'static str,
    pub(super) object: Value,
}

/// The version asked for is forgotten: 410 Gone.
pub(super) struct Gone;

impl Store {
    /// The version of the last change. An empty server has version 1, because 0 has a meaning of its own in requests.
    pub(super) const fn version(&self) -> u64 {
        1 + self.history.len() as u64
    }

    /// Creates or replaces an object.
    pub(super) fn apply(&mut self, key: Key, mut object: Value) {
        let version = self.version() + 1;
        object["metadata"]["resourceVersion"] = version.to_string().into();
        let before = self.objects.insert(key.clone(), object.clone());
        self.history.push(Change {
            version,
            key,
            before,
            after: Some(object),
        });
    }

    /// An object, if there is one.
    pub(super) fn get(&self, key: &Key) -> Option<&Value> {
        self.objects.get(key)
    }

    /// Deletes an object; false when there is none.
    pub(super) fn delete(&mut self, key: &Key) -> bool {
        let Some(before) = self.objects.remove(key) else {
            return false;
        };
        let version = self.version() + 1;
        self.history.push(Change {
            version,
            key: key.clone(),
            before: Some(before),
            after: None,
        });
        true
    }

    /// Forgets everything before the current version. Open watches go on.
    pub(super) const fn compact(&mut self) {
        self.compacted = self.version();
    }

    /// Goes back to how all was at an earlier version, as etcd does that is restored from a snapshot: what happened since
    /// never did, and its versions are given out anew.
    pub(super) fn restore(&mut self, version: u64) {
        let objects = self.objects_at(version).into_iter();
        self.objects = objects.map(|(key, object)| (key.clone(), object.clone())).collect();
        self.history.retain(|change| change.version <= version);
        self.compacted = self.compacted.min(version);
    }

    /// One page of at most `limit` objects, the first one or the one that starts at a token.
    pub(super) fn list(
        &self,
        resource: Resource,
        selector: &Selector,
        limit: usize,
        token: Option<&str>,
    ) -> Result<Page, Gone> {
        let (version, after) = match token {
            None => (self.version(), None),
            Some(token) => {
                let (version, key) = parse_token(resource, token).ok_or(Gone)?;
                if version < self.compacted {
                    return Err(Gone);
                }
                (version, Some(key))
            }
        };
        let matching: Vec<_> = self
            .objects_at(version)
            .into_iter()
            .filter(|(key, object)| {
                key.resource == resource && after.as_ref().is_none_or(|after| *key > after) && selector.selects(object)
            })
            .collect();
        let page = &matching[..limit.min(matching.len())];
        let rest = matching.len() - page.len();
        Ok(Page {
            objects: page.iter().map(|(_, object)| (*object).clone()).collect(),
            version,
            rest: page
                .last()
                .filter(|_| rest > 0)
                .map(|(key, _)| (to_token(version, key), rest)),
        })
    }

    /// Whether a watch may start at this version.
    pub(super) const fn remembers(&self, version: u64) -> bool {
        version >= self.compacted
    }

    /// What happened after a version. An object that begins or ceases to be selected comes or goes as if created or
    /// deleted (staging/src/k8s.io/apiserver/pkg/storage/cacher/cache_watcher.go).
    pub(super) fn events_after(&self, version: u64, resource: Resource, selector: &Selector) -> Vec<Event> {
        let start = self.history.partition_point(|change| change.version <= version);
        let selected = |object: &Option<Value>| object.clone().filter(|object| selector.selects(object));
        self.history[start..]
            .iter()
            .filter(|change| change.key.resource == resource)
            .filter_map(|change| {
                let (kind, mut object) = match (selected(&change.before), selected(&change.after)) {
                    (None, Some(after)) => ("ADDED", after),
                    (Some(_), Some(after)) => ("MODIFIED", after),
                    (Some(before), None) => ("DELETED", before),
                    (None, None) => return None,
                };
                object["metadata"]["resourceVersion"] = change.version.to_string().into();
                Some(Event { kind, object })
            })
            .collect()
    }

    /// All objects as they were: the later changes undone, the last one first.
    fn objects_at(&self, version: u64) -> BTreeMap<&Key, &Value> {
        let mut objects: BTreeMap<_, _> = self.objects.iter().collect();
        for change in self.history.iter().rev().take_while(|change| change.version > version) {
            match &change.before {
                Some(before) => _ = objects.insert(&change.key, before),
                None => _ = objects.remove(&change.key),
            }
        }
        objects
    }
}

/// A list's continue token: its version and the last object of the page before.
fn to_token(version: u64, key: &Key) -> String {
    format!("{version}/{}/{}", key.namespace, key.name)
}

fn parse_token(resource: Resource, token: &str) -> Option<(u64, Key)> {
    let (version, rest) = token.split_once('/')?;
    let (namespace, name) = rest.split_once('/')?;
    Some((
        version.parse().ok()?,
        Key {
            resource,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        },
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn key(name: &str) -> Key {
        Key {
            resource: Resource::Services,
            namespace: "default".to_owned(),
            name: name.to_owned(),
        }
    }

    fn object(name: &str, labels: &Value) -> Value {
        json!({"kind": "Service", "metadata": {"name": name, "labels": labels}})
    }

    fn names(page: &Page) -> Vec<&str> {
        page.objects
            .iter()
            .filter_map(|object| object["metadata"]["name"].as_str())
            .collect()
    }

    #[test]
    fn the_pages_of_a_list_show_one_version() {
        let mut store = Store::default();
        for name in ["a", "b", "c", "d"] {
            store.apply(key(name), object(name, &json!({})));
        }
        let all = Selector::default();
        let first = store
            .list(Resource::Services, &all, 2, None)
            .ok()
            .expect("the first page");
        assert_eq!(names(&first), ["a", "b"]);
        let (token, rest) = first.rest.expect("a second page");
        assert_eq!(rest, 2);

        store.delete(&key("c"));
        store.apply(key("e"), object("e", &json!({})));
        let second = store
            .list(Resource::Services, &all, 2, Some(&token))
            .ok()
            .expect("the second page");
        assert_eq!(names(&second), ["c", "d"], "as it was when the list began");
        assert_eq!(second.version, first.version);
        assert!(second.rest.is_none());

        store.compact();
        assert!(store.list(Resource::Services, &all, 2, Some(&token)).is_err());
        assert!(!store.remembers(first.version));
        assert!(store.remembers(store.version()));
    }

    #[test]
    fn leaving_the_selector_is_a_deletion() {
        let mut store = Store::default();
        let visible = Selector::parse(Resource::Services, "!hidden", "").expect("a valid selector");
        for labels in [
            json!({}),
            json!({"hidden": ""}),
            json!({"hidden": "x"}),
            json!({}),
            json!({"a": "b"}),
        ] {
            store.apply(key("a"), object("a", &labels));
        }
        store.apply(
            Key {
                resource: Resource::Nodes,
                ..key("n")
            },
            object("n", &json!({})),
        );
        let events = store.events_after(0, Resource::Services, &visible);
        let told: Vec<_> = events
            .iter()
            .map(|event| (event.object["metadata"]["resourceVersion"].as_str(), event.kind))
            .collect();
        assert_eq!(
            told,
            [
                (Some("2"), "ADDED"),
                (Some("3"), "DELETED"),
                (Some("5"), "ADDED"),
                (Some("6"), "MODIFIED")
            ]
        );
        assert_eq!(store.events_after(5, Resource::Services, &visible).len(), 1);
    }
}
