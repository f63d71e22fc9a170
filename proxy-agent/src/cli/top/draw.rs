//! The screen.

use ratatui::{
    Frame,
    layout::{Constraint, Layout},
    style::{Color, Modifier, Style},
    text::{Line as Text, Span},
    widgets::{Cell, Paragraph, Row, Table, TableState},
};

use super::{
    rates::{Load, Rates},
    setup::Setup,
    view::{Column, Line, View},
};

/// The columns: what they are sorted by, and their header.
const COLUMNS: [(Column, &str); 7] = [
    (Column::Service, "SERVICE"),
    (Column::Connections, "CONN/S"),
    (Column::Packets, "PKTS/S"),
    (Column::Bytes, "BYTES/S"),
    (Column::Refused, "REFUSED/S"),
    (Column::Flows, "FLOWS"),
    (Column::Setup, "SETUP MS"),
];

/// What the keys do.
const KEYS: &str = "q quit  s sort  / filter  Enter endpoints  Space pause";

/// Draws the screen.
pub(super) fn draw(frame: &mut Frame<'_>, rates: &Rates, view: &View) {
    let [summary, refusals, table, keys] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Fill(1),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    frame.render_widget(Paragraph::new(summary_line(rates)), summary);
    frame.render_widget(Paragraph::new(refusals_line(rates)), refusals);
    let rows = view.lines(rates).into_iter().map(|line| match line {
        Line::Service(row) => {
            let name = format!("{} {}", row.service, row.protocol);
            let style = if row.load.refused > 0.0 {
                Style::new().fg(Color::Yellow)
            } else {
                Style::new()
            };
            Row::new(cells(name, &row.load, row.setup)).style(style)
        }
        Line::Endpoint(row) => Row::new([
            Cell::new(format!("  {}", row.endpoint)),
            // Not the default, which spans no column.
            Cell::new(""),
            Cell::new(""),
            Cell::new(""),
            Cell::new(""),
            right(row.flows.to_string()),
            Cell::new(""),
        ]),
    });
    let header = COLUMNS.map(|(column, title)| {
        let title = if column == view.sort {
            format!("{title}*")
        } else {
            title.to_owned()
        };
        if column == Column::Service {
            Cell::new(title)
        } else {
            right(title)
        }
    });
    let widths = [
        Constraint::Fill(1),
        Constraint::Length(7),
        Constraint::Length(7),
        Constraint::Length(8),
        Constraint::Length(10),
        Constraint::Length(7),
        Constraint::Length(9),
    ];
    let widget = Table::new(rows, widths)
        .header(Row::new(header).style(Style::new().fg(Color::Cyan).add_modifier(Modifier::BOLD)))
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
    let mut state = TableState::new().with_selected(view.chosen);
    frame.render_stateful_widget(widget, table, &mut state);
    frame.render_widget(Paragraph::new(last_line(view)), keys);
}

fn right<'a>(text: String) -> Cell<'a> {
    Cell::new(Text::from(text).right_aligned())
}

fn cells<'a>(name: String, load: &Load, setup: Option<Setup>) -> [Cell<'a>; 7] {
    [
        Cell::new(name),
        right(short(load.connections)),
        right(short(load.packets)),
        right(short(load.bytes)),
        right(short(load.refused)),
        right(load.flows.to_string()),
        right(setup.map_or_else(String::new, waits)),
    ]
}

fn summary_line(rates: &Rates) -> Text<'static> {
    let Load {
        connections,
        packets,
        bytes,
        refused,
        flows,
    } = rates.total;
    Text::from(format!(
        "{} service ports  {} connections/s  {} packets/s  {} bytes/s  {} refused/s  {flows} flows",
        rates.services.len(),
        short(connections),
        short(packets),
        short(bytes),
        short(refused),
    ))
}

/// Why packets are refused.
fn refusals_line(rates: &Rates) -> Text<'static> {
    let mut spans = Vec::new();
    for refusal in &rates.refusals {
        let text = format!("{} {}/s  ", refusal.reason, short(refusal.packets));
        spans.push(Span::styled(text, Style::new().fg(Color::Red)));
    }
    Text::from(spans)
}

fn last_line(view: &View) -> String {
    if view.typing {
        format!("filter: {}_  (Enter to keep, Esc to drop)", view.filter)
    } else if view.paused {
        format!("PAUSED  {KEYS}")
    } else if view.filter.is_empty() {
        KEYS.to_owned()
    } else {
        format!("{KEYS}  filter: {}", view.filter)
    }
}

/// How long connections took to be set up: half of them no longer than the first, all but one in a hundred than the second number of
/// milliseconds.
pub(super) fn waits(setup: Setup) -> String {
    let short = |milliseconds: f64| {
        let digits = match milliseconds {
            ..10.0 => 2,
            ..100.0 => 1,
            _ => 0,
        };
        format!("{milliseconds:.digits$}")
    };
    format!("{}/{}", short(setup.p50), short(setup.p99))
}

/// A rate with three digits or so: 0, 0.5, 123, 12.3k, 4.5M.
pub(super) fn short(rate: f64) -> String {
    const UNITS: [(f64, &str); 3] = [(1e9, "G"), (1e6, "M"), (1e3, "k")];
    for (size, name) in UNITS {
        if rate >= size {
            let scaled = rate / size;
            let digits = usize::from(scaled < 100.0);
            return format!("{scaled:.digits$}{name}");
        }
    }
    let digits = usize::from(rate > 0.0 && rate < 100.0);
    format!("{rate:.digits$}")
}

#[cfg(test)]
mod tests {
    use ratatui::{Terminal, backend::TestBackend, crossterm::event::KeyCode};

    use super::{
        super::rates::{Refusal, ServiceRates},
        *,
    };

    fn service(name: &str, connections: f64, refused: f64, flows: &[u64]) -> ServiceRates {
        let load = Load {
            connections,
            packets: connections * 10.0,
            bytes: connections * 1000.0,
            refused,
            ..Load::default()
        };
        ServiceRates::example(name, load, flows)
    }

    #[test]
    fn the_screen_shows_rates_refusals_and_endpoints() {
        let rates = Rates {
            seconds: 1.0,
            total: Load {
                connections: 1250.0,
                packets: 12_500.0,
                bytes: 1_250_000.0,
                refused: 0.5,
                flows: 9,
            },
            refusals: vec![Refusal {
                reason: "NoEndpoints".to_owned(),
                packets: 0.5,
            }],
            services: vec![
                ServiceRates {
                    setup: Some(Setup {
                        answered: 100,
                        p50: 0.25,
                        p99: 123.4,
                    }),
                    ..service("web", 1234.0, 0.0, &[3, 6])
                },
                service("dns", 16.0, 1.5, &[]),
            ],
        };
        let mut view = View::default();
        view.press(KeyCode::Enter.into(), &rates);
        let mut terminal = Terminal::new(TestBackend::new(80, 9)).expect("a screen");
        terminal.draw(|frame| draw(frame, &rates, &view)).expect("drawn");
        let screen: Vec<_> = terminal.backend().to_string().lines().map(str::to_owned).collect();
        let expected = [
            "2 service ports  1.2k connections/s  12.5k packets/s  1.2M bytes/s  0.5 refused/",
            "NoEndpoints 0.5/s",
            "SERVICE                    CONN/S*  PKTS/S  BYTES/S  REFUSED/S   FLOWS  SETUP MS",
            "default/web:http TCP          1.2k   12.3k     1.2M          0       9  0.25/123",
            "  10.0.0.2:80                                                        6          ",
            "  10.0.0.1:80                                                        3          ",
            "default/dns:http TCP          16.0     160    16.0k        1.5       0          ",
            "",
            "q quit  s sort  / filter  Enter endpoints  Space pause",
        ];
        let expected = expected.map(|line| format!("\"{line:<80}\""));
        assert_eq!(screen, expected, "{screen:#?}");
    }

    #[test]
    fn the_last_line_says_what_keys_do() {
        let mut view = View::default();
        assert_eq!(last_line(&view), KEYS);
        view.paused = true;
        assert!(last_line(&view).starts_with("PAUSED"));
        (view.typing, view.filter) = (true, "we".to_owned());
        assert!(last_line(&view).starts_with("filter: we_"));
    }

    #[test]
    fn rates_are_short() {
        let rates = [0.0, 0.26, 12.34, 123.4, 1234.0, 123_456.0, 4_560_000.0, 7e9];
        let texts = rates.map(short);
        assert_eq!(texts, ["0", "0.3", "12.3", "123", "1.2k", "123k", "4.6M", "7.0G"]);
    }
}
