//! Reading events, and forgetting them.

use super::super::events::{EventPage, kind_of, kind_word};
use super::*;

const KINDS: [EventKind; 10] = [
    EventKind::Enrolled,
    EventKind::Presence,
    EventKind::Health,
    EventKind::Check,
    EventKind::Gap,
    EventKind::Conflict,
    EventKind::Resync,
    EventKind::Restart,
    EventKind::Renamed,
    EventKind::MasterStart,
];

fn ask(directory: &Path, query: EventQuery) -> EventPage {
    let mut reader = EventReader::open(&Store::database(directory)).unwrap();
    reader.query(&query).unwrap()
}

fn ids(page: &EventPage) -> Vec<i64> {
    page.events.iter().map(|event| event.id).collect()
}

/// Ten events of two slaves and two kinds; the fifth was told late, from a backlog.
fn ten_events() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut opened = open(folder.path());
    let events = (1..=10)
        .map(|id| EventRow {
            slave: Some(if id % 2 == 0 { "even" } else { "odd" }.to_owned()),
            kind: if id > 6 {
                EventKind::Check
            } else {
                EventKind::Health
            },
            time_ms: if id == 5 { 1 } else { id * 10 },
            replayed: id == 5,
            ..event(id)
        })
        .collect();
    commit(&mut opened, Group { events, ..group(1) });
    opened.handle.close().unwrap();
    folder
}

#[test]
fn filters_bound_what_is_read_and_orders_are_as_told() {
    let folder = ten_events();
    let all = EventQuery {
        after: None,
        filter: EventFilter::default(),
        limit: 4,
    };
    let with = |after, filter| EventQuery {
        after,
        filter,
        ..all.clone()
    };
    let nothing = EventFilter::default;

    let newest = ask(folder.path(), all.clone());
    assert_eq!(ids(&newest), [7, 8, 9, 10]);
    let first = ask(folder.path(), with(Some(0), nothing()));
    assert_eq!(
        (ids(&first), first.more, first.complete_to),
        (vec![1, 2, 3, 4], true, 4)
    );
    let last = ask(folder.path(), with(Some(8), nothing()));
    assert_eq!(
        (ids(&last), last.more, last.complete_to),
        (vec![9, 10], false, 10)
    );
    let slave = EventFilter {
        slave: Some("odd".to_owned()),
        ..nothing()
    };
    let odd = ask(folder.path(), with(Some(6), slave.clone()));
    assert_eq!(
        (ids(&odd), odd.more, odd.complete_to),
        (vec![7, 9], false, 10)
    );
    assert_eq!(ids(&ask(folder.path(), with(None, slave))), [3, 5, 7, 9]);

    let kind = EventFilter {
        kind: Some(EventKind::Check),
        ..nothing()
    };
    assert_eq!(ids(&ask(folder.path(), with(Some(0), kind))), [7, 8, 9, 10]);
    let stretch = EventFilter {
        since_ms: Some(20),
        until_ms: Some(40),
        ..nothing()
    };
    assert_eq!(ids(&ask(folder.path(), with(None, stretch))), [2, 3]);
    // By time of origin: the late one was the first to happen.
    let until = EventFilter {
        until_ms: Some(31),
        ..nothing()
    };
    assert_eq!(ids(&ask(folder.path(), with(None, until))), [5, 1, 2, 3]);
    let since = EventFilter {
        since_ms: Some(0),
        ..nothing()
    };
    assert_eq!(
        ids(&ask(folder.path(), with(None, since.clone()))),
        [5, 1, 2, 3]
    );
    assert_eq!(ids(&ask(folder.path(), with(Some(3), since))), [4, 5, 6, 7]);

    let whole = ask(folder.path(), with(Some(4), nothing()))
        .events
        .swap_remove(0);
    assert_eq!(
        whole,
        EventRow {
            slave: Some("odd".to_owned()),
            kind: EventKind::Health,
            time_ms: 1,
            replayed: true,
            recorded_ms: whole.recorded_ms,
            ..event(5)
        }
    );
}

#[test]
fn a_filter_passes_the_same_events_live_as_from_the_database() {
    let folder = ten_events();
    let everything = events_of(folder.path(), 0);
    let filters = [
        EventFilter {
            slave: Some("even".to_owned()),
            ..EventFilter::default()
        },
        EventFilter {
            kind: Some(EventKind::Check),
            ..EventFilter::default()
        },
        EventFilter {
            since_ms: Some(30),
            ..EventFilter::default()
        },
        EventFilter {
            until_ms: Some(30),
            ..EventFilter::default()
        },
    ];
    for filter in filters {
        let query = EventQuery {
            after: Some(0),
            filter: filter.clone(),
            limit: 100,
        };
        let stored = ask(folder.path(), query).events;
        let live: Vec<_> = everything
            .iter()
            .filter(|event| filter.matches(event))
            .cloned()
            .collect();
        assert_eq!(stored, live, "{filter:?}");
        assert!(!live.is_empty() && live.len() < 10, "{filter:?}");
    }
}

#[test]
fn old_events_go_in_slices_and_their_ids_do_not_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let mut opened = open(folder.path());
    let long_ago = EventRow {
        recorded_ms: 5,
        ..event(0)
    };
    let old = (1..=450).map(|id| EventRow {
        id,
        ..long_ago.clone()
    });
    commit(
        &mut opened,
        Group {
            events: old.collect(),
            ..group(1)
        },
    );
    commit(
        &mut opened,
        Group {
            events: vec![event(451)],
            ..group(2)
        },
    );
    opened.handle.close().unwrap();
    // The first sweep went with the first group; the second with the second.
    assert_eq!(events_of(folder.path(), 0).len(), 450 + 1 - 2 * 200);

    let mut opened = open(folder.path());
    commit(&mut opened, group(3));
    assert_eq!(opened.loaded.next_event, 452);
    opened.handle.close().unwrap();
    let left: Vec<i64> = events_of(folder.path(), 0)
        .iter()
        .map(|event| event.id)
        .collect();
    assert_eq!(left, [451]);
}

#[test]
fn kinds_go_by_the_words_of_the_api() {
    for kind in KINDS {
        let word = kind_word(kind);
        assert_eq!(serde_json::to_string(&kind).unwrap(), format!("\"{word}\""));
        assert_eq!(kind_of(word).unwrap(), kind);
    }
    let error = kind_of("presense").unwrap_err().to_string();
    assert!(
        error.contains("presense") && error.contains("`presence`"),
        "{error}"
    );
}
