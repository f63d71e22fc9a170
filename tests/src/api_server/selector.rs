//! Label and field selectors, in the syntax of the API's query parameters (set-based requirements with `in` excepted).

use serde_json::Value;

use super::resource::Resource;

/// Which objects of a kind are meant: those that satisfy every requirement.
#[derive(Clone, Debug, Default)]
pub(super) struct Selector {
    labels: Vec<(String, Requirement)>,
    /// JSON pointers
    fields: Vec<(String, Requirement)>,
}

#[derive(Clone, Debug)]
enum Requirement {
    Exists,
    Absent,
    Equals(String),
    Differs(String),
}

impl Selector {
    /// Parses both selectors; the error is the text of a 400 answer.
    pub(super) fn parse(resource: Resource, labels: &str, fields: &str) -> Result<Self, String> {
        let labels = terms(labels).map(parse_term).collect();
        let fields = terms(fields)
            .map(|term| parse_field(resource, term))
            .collect::<Result<_, _>>()?;
        Ok(Self { labels, fields })
    }

    pub(super) fn selects(&self, object: &Value) -> bool {
        let labels = &object["metadata"]["labels"];
        self.labels
            .iter()
            .all(|(key, requirement)| requirement.holds(labels[key].as_str()))
            && self.fields.iter().all(|(pointer, requirement)| {
                // A field that isn't there has the empty value.
                requirement.holds(Some(
                    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default(),
                ))
            })
    }
}

impl Requirement {
    fn holds(&self, value: Option<&str>) -> bool {
        match self {
            Self::Exists => value.is_some(),
            Self::Absent => value.is_none(),
            Self::Equals(wanted) => value == Some(wanted),
            Self::Differs(unwanted) => value != Some(unwanted),
        }
    }
}

fn terms(selector: &str) -> impl Iterator<Item = &str> {
    selector.split(',').map(str::trim).filter(|term| !term.is_empty())
}

fn parse_term(term: &str) -> (String, Requirement) {
    if let Some((key, value)) = term.split_once("!=") {
        (key.to_owned(), Requirement::Differs(value.to_owned()))
    } else if let Some((key, value)) = term.split_once("==").or_else(|| term.split_once('=')) {
        (key.to_owned(), Requirement::Equals(value.to_owned()))
    } else if let Some(key) = term.strip_prefix('!') {
        (key.to_owned(), Requirement::Absent)
    } else {
        (term.to_owned(), Requirement::Exists)
    }
}

fn parse_field(resource: Resource, term: &str) -> Result<(String, Requirement), String> {
    let (field, requirement) = parse_term(term);
    if matches!(requirement, Requirement::Exists | Requirement::Absent) {
        return Err(format!("invalid field selector {term:?}"));
    }
    if !resource.selectable_fields().contains(&field.as_str()) {
        return Err(format!("field label not supported: {field}"));
    }
    Ok((format!("/{}", field.replace('.', "/")), requirement))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn selects(labels: &str, fields: &str, object: &Value) -> bool {
        Selector::parse(Resource::Services, labels, fields)
            .expect("the selector is valid")
            .selects(object)
    }

    #[test]
    fn labels() {
        let object = json!({"metadata": {"labels": {"app": "web", "empty": ""}}});
        assert!(selects("", "", &object));
        assert!(selects("app", "", &object));
        assert!(!selects("!app", "", &object));
        assert!(!selects("!empty", "", &object), "an empty value is a label too");
        assert!(selects("!other,app=web", "", &object));
        assert!(!selects("!other,app=db", "", &object));
        assert!(
            selects("other!=x", "", &object),
            "a missing label differs from every value"
        );
    }

    #[test]
    fn fields() {
        let object = json!({"metadata": {"name": "web"}, "spec": {"clusterIP": "None"}});
        assert!(selects("", "metadata.name=web", &object));
        assert!(!selects("", "spec.clusterIP!=None", &object));
        assert!(selects("", "spec.type=", &object), "a missing field is empty");
        assert!(Selector::parse(Resource::EndpointSlices, "", "spec.clusterIP!=None").is_err());
        assert!(Selector::parse(Resource::Services, "", "metadata.name").is_err());
    }
}
