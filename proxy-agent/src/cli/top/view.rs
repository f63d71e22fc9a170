//! What of the rates is shown, and in which order: what the keys change. Pure.

use std::{cmp::Ordering, collections::BTreeSet};

use clap::ValueEnum;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::rates::{EndpointFlows, Rates, ServiceRates};
use crate::plan::Protocol;

/// What service ports are sorted by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Column {
    /// New connections, the most first
    #[default]
    Connections,
    /// Packets
    Packets,
    /// Bytes
    Bytes,
    /// Refused packets
    Refused,
    /// Flows
    Flows,
    /// How long connections take to be set up: the slowest first
    Setup,
    /// Name
    Service,
}

impl Column {
    /// In the order of the screen.
    const ALL: [Self; 7] = [
        Self::Service,
        Self::Connections,
        Self::Packets,
        Self::Bytes,
        Self::Refused,
        Self::Flows,
        Self::Setup,
    ];

    /// The next one to the right, around the end.
    fn next(self) -> Self {
        let place = Self::ALL.iter().position(|column| *column == self).unwrap_or(0);
        Self::ALL[(place + 1) % Self::ALL.len()]
    }

    fn compare(self, a: &ServiceRates, b: &ServiceRates) -> Ordering {
        let (x, y) = (&a.load, &b.load);
        let by_load = match self {
            Self::Connections => y.connections.total_cmp(&x.connections),
            Self::Packets => y.packets.total_cmp(&x.packets),
            Self::Bytes => y.bytes.total_cmp(&x.bytes),
            Self::Refused => y.refused.total_cmp(&x.refused),
            Self::Flows => y.flows.cmp(&x.flows),
            Self::Setup => {
                let wait = |row: &ServiceRates| row.setup.map_or(-1.0, |setup| setup.p50);
                wait(b).total_cmp(&wait(a))
            }
            Self::Service => Ordering::Equal,
        };
        by_load.then_with(|| (&a.service, a.protocol).cmp(&(&b.service, b.protocol)))
    }
}

/// A line of the screen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Line<'a> {
    /// A service port
    Service(&'a ServiceRates),
    /// A backend of the one above
    Endpoint(EndpointFlows),
}

/// What is shown.
#[derive(Clone, Debug, Default)]
pub(super) struct View {
    /// What service ports are sorted by
    pub(super) sort: Column,
    /// Only service ports whose name or frontend has this in it
    pub(super) filter: String,
    /// Keys are for the filter
    pub(super) typing: bool,
    /// Nothing is read any more
    pub(super) paused: bool,
    /// Number of the chosen line
    pub(super) chosen: usize,
    /// Service ports whose backends are shown
    opened: BTreeSet<(String, Protocol)>,
}

/// What a key asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    /// Go on
    Stay,
    /// End
    Quit,
}

impl View {
    /// Sorted by a column, and only what a filter asks for.
    pub(super) fn new(sort: Column, filter: String) -> Self {
        Self {
            sort,
            filter,
            ..Self::default()
        }
    }

    /// All service ports that are wanted, sorted.
    pub(super) fn services<'a>(&self, rates: &'a Rates) -> Vec<&'a ServiceRates> {
        let has = |text: &str| text.contains(&self.filter);
        let wanted = |row: &&ServiceRates| has(&row.service) || row.frontends.iter().any(|frontend| has(frontend));
        let mut rows: Vec<_> = rates.services.iter().filter(wanted).collect();
        rows.sort_by(|a, b| self.sort.compare(a, b));
        rows
    }

    /// The lines: service ports, and the backends of those that are opened, the ones with the most flows first.
    pub(super) fn lines<'a>(&self, rates: &'a Rates) -> Vec<Line<'a>> {
        let mut lines = Vec::new();
        for row in self.services(rates) {
            lines.push(Line::Service(row));
            if self.opened.contains(&(row.service.clone(), row.protocol)) {
                let mut endpoints = row.endpoints.clone();
                endpoints.sort_by_key(|endpoint| (u64::MAX - endpoint.flows, endpoint.endpoint));
                lines.extend(endpoints.into_iter().map(Line::Endpoint));
            }
        }
        lines
    }

    /// Does what a key asks for.
    pub(super) fn press(&mut self, key: KeyEvent, rates: &Rates) -> Wish {
        if key.modifiers.contains(KeyModifiers::CONTROL) && key.code == KeyCode::Char('c') {
            return Wish::Quit;
        }
        if self.typing {
            match key.code {
                KeyCode::Enter => self.typing = false,
                KeyCode::Esc => (self.typing, self.filter) = (false, String::new()),
                KeyCode::Backspace => drop(self.filter.pop()),
                KeyCode::Char(letter) => self.filter.push(letter),
                _ => {}
            }
            self.chosen = 0;
            return Wish::Stay;
        }
        let last = self.lines(rates).len().saturating_sub(1);
        self.chosen = self.chosen.min(last);
        match key.code {
            KeyCode::Char('q') | KeyCode::Esc => return Wish::Quit,
            KeyCode::Char('s') => self.sort = self.sort.next(),
            KeyCode::Char('/') => self.typing = true,
            KeyCode::Char(' ') => self.paused = !self.paused,
            KeyCode::Down | KeyCode::Char('j') => self.chosen = (self.chosen + 1).min(last),
            KeyCode::Up | KeyCode::Char('k') => self.chosen = self.chosen.saturating_sub(1),
            KeyCode::PageDown => self.chosen = (self.chosen + 10).min(last),
            KeyCode::PageUp => self.chosen = self.chosen.saturating_sub(10),
            KeyCode::Home => self.chosen = 0,
            KeyCode::End => self.chosen = last,
            KeyCode::Enter => self.open_or_close(rates),
            _ => {}
        }
        Wish::Stay
    }

    /// Shows the backends of the chosen service port, or hides them again.
    fn open_or_close(&mut self, rates: &Rates) {
        let lines = self.lines(rates);
        let above = lines.iter().take(self.chosen + 1).enumerate().rev();
        let service = above.into_iter().find_map(|(place, line)| match line {
            Line::Service(row) => Some((place, (row.service.clone(), row.protocol))),
            Line::Endpoint(_) => None,
        });
        if let Some((place, service)) = service {
            self.chosen = place;
            if !self.opened.remove(&service) {
                self.opened.insert(service);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::rates::Load, *};

    fn service(name: &str, connections: f64, bytes: f64, flows: &[u64]) -> ServiceRates {
        let load = Load {
            connections,
            bytes,
            ..Load::default()
        };
        ServiceRates::example(name, load, flows)
    }

    fn rates() -> Rates {
        Rates {
            services: vec![
                service("a", 1.0, 900.0, &[1, 5]),
                service("bb", 3.0, 100.0, &[]),
                service("ccc", 2.0, 500.0, &[2]),
            ],
            ..Rates::default()
        }
    }

    fn shown(view: &View) -> Vec<String> {
        let name = |line: &Line<'_>| match line {
            Line::Service(row) => row.service.clone(),
            Line::Endpoint(row) => row.endpoint.to_string(),
        };
        view.lines(&rates()).iter().map(name).collect()
    }

    fn press(view: &mut View, keys: impl IntoIterator<Item = KeyCode>) -> Wish {
        let wishes = keys.into_iter().map(|key| view.press(key.into(), &rates()));
        wishes.last().unwrap_or(Wish::Stay)
    }

    #[test]
    fn services_are_sorted_by_the_column_that_a_key_chooses() {
        let mut view = View::default();
        assert_eq!(shown(&view), ["default/bb:http", "default/ccc:http", "default/a:http"]);
        press(&mut view, [KeyCode::Char('s'); 2]);
        assert_eq!(view.sort, Column::Bytes);
        assert_eq!(shown(&view), ["default/a:http", "default/ccc:http", "default/bb:http"]);
        press(&mut view, [KeyCode::Char('s'); 4]);
        assert_eq!(view.sort, Column::Service);
        assert_eq!(shown(&view), ["default/a:http", "default/bb:http", "default/ccc:http"]);
    }

    #[test]
    fn a_filter_is_typed_and_taken_back() {
        let mut view = View::default();
        press(&mut view, "/ccx".chars().map(KeyCode::Char));
        assert!(shown(&view).is_empty());
        press(&mut view, [KeyCode::Backspace, KeyCode::Enter]);
        assert_eq!(shown(&view), ["default/ccc:http"]);
        assert_eq!(
            press(&mut view, [KeyCode::Char('/'), KeyCode::Char('q')]),
            Wish::Stay,
            "a letter"
        );
        press(&mut view, [KeyCode::Esc]);
        assert_eq!(shown(&view).len(), 3);
        press(&mut view, "/0.2:80".chars().map(KeyCode::Char));
        assert_eq!(shown(&view), ["default/bb:http"], "by frontend");
    }

    #[test]
    fn a_service_opens_to_its_endpoints_and_closes_from_there() {
        let mut view = View::default();
        press(&mut view, [KeyCode::End, KeyCode::Enter]);
        let opened = [
            "default/bb:http",
            "default/ccc:http",
            "default/a:http",
            "10.0.0.2:80",
            "10.0.0.1:80",
        ];
        assert_eq!(shown(&view), opened, "the one with more flows first");
        press(&mut view, [KeyCode::Down, KeyCode::Down, KeyCode::Down]);
        assert_eq!(view.chosen, 4, "the last line");
        press(&mut view, [KeyCode::Enter]);
        assert_eq!((shown(&view).len(), view.chosen), (3, 2));
    }

    #[test]
    fn keys_end_and_pause_it() {
        let mut view = View::default();
        assert_eq!(press(&mut view, [KeyCode::Char(' ')]), Wish::Stay);
        assert!(view.paused);
        for quits in [
            KeyEvent::from(KeyCode::Char('q')),
            KeyEvent::from(KeyCode::Esc),
            KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL),
        ] {
            assert_eq!(view.press(quits, &rates()), Wish::Quit);
        }
    }
}
