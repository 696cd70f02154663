//! Reading events, and forgetting them.

use super::super::events::{EventPage, kind_of};
use super::*;

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

fn ids_on_disk(directory: &Path) -> Vec<i64> {
    let events = events_of(directory, 0);
    events.iter().map(|event| event.id).collect()
}

#[test]
fn old_events_go_in_slices_and_their_ids_do_not_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let forever = Retention {
        keep: Duration::MAX,
        ..KEEP
    };
    let mut opened = Store::open(folder.path(), forever).unwrap();
    let old = (1..=450).map(|id| EventRow {
        recorded_ms: 5,
        ..event(id)
    });
    commit(
        &mut opened,
        Group {
            events: old.chain([event(451)]).collect(),
            ..group(1)
        },
    );
    opened.handle.close().unwrap();

    // One slice goes with each group, for as long as there are more.
    for (round, left) in [(2, 251), (3, 51), (4, 1), (5, 1)] {
        let mut opened = open(folder.path());
        commit(&mut opened, group(round));
        assert_eq!(opened.loaded.next_event, 452);
        opened.handle.close().unwrap();
        assert_eq!(ids_on_disk(folder.path()).len(), left);
    }
    assert_eq!(ids_on_disk(folder.path()), [451]);
}

#[test]
fn the_oldest_events_make_room_and_the_file_stops_growing() {
    const EVENTS_A_GROUP: i64 = 100;
    let folder = tempfile::tempdir().unwrap();
    let small = Retention {
        bytes_max: 600_000,
        ..KEEP
    };
    let mut opened = Store::open(folder.path(), small).unwrap();
    let in_use = || {
        let reader = schema::open_read_only(&Store::database(folder.path())).unwrap();
        events::bytes_in_use(&reader).unwrap()
    };
    for round in 1..=100 {
        let first = 1 + i64::try_from(round - 1).unwrap() * EVENTS_A_GROUP;
        commit(
            &mut opened,
            Group {
                redo: Vec::new(),
                events: (first..first + EVENTS_A_GROUP).map(event).collect(),
                ..group(round)
            },
        );
        // It is looked at once a second, and at a start.
        if round % 5 == 0 {
            opened.handle.close().unwrap();
            opened = Store::open(folder.path(), small).unwrap();
            assert!(in_use() < small.bytes_max + 100_000, "{}", in_use());
        }
    }
    opened.handle.close().unwrap();
    let length = fs::metadata(Store::database(folder.path())).unwrap().len();
    assert!(length < 1_000_000, "what is freed is used again: {length}");
    let left = ids_on_disk(folder.path());
    assert_eq!(left.last(), Some(&10_000));
    assert!(left.len() >= 1000 && left.len() < 8000, "{}", left.len());
    assert!(left.windows(2).all(|pair| pair[0] + 1 == pair[1]));

    let tiny = Retention {
        bytes_max: 1,
        ..KEEP
    };
    for round in 101..140 {
        let mut opened = Store::open(folder.path(), tiny).unwrap();
        commit(&mut opened, group(round));
        opened.handle.close().unwrap();
    }
    assert_eq!(
        ids_on_disk(folder.path()),
        (9_001..=10_000).collect::<Vec<_>>()
    );
}

#[test]
fn a_damaged_event_is_left_out_counted_and_does_not_end_the_page() {
    let folder = tempfile::tempdir().unwrap();
    let mut opened = open(folder.path());
    commit(
        &mut opened,
        Group {
            events: (1..=5).map(event).collect(),
            ..group(1)
        },
    );
    let path = Store::database(folder.path());
    let other = rusqlite::Connection::open(&path).unwrap();
    let spoil = "UPDATE events SET text = 'no report in tine' WHERE id IN (2, 5)";
    other.execute_batch(spoil).unwrap();
    let mut reader = EventReader::open(&path).unwrap();
    let query = EventQuery {
        after: Some(0),
        filter: EventFilter::default(),
        limit: 5,
    };
    let page = reader.query(&query).unwrap();
    let ids: Vec<i64> = page.events.iter().map(|event| event.id).collect();
    assert_eq!((ids, page.damaged), (vec![1, 3, 4], 2));
    assert_eq!((page.more, page.complete_to), (true, 5));
}

#[test]
fn kinds_go_by_the_words_of_the_api() {
    for kind in EventKind::ALL {
        assert_eq!(kind_of(kind.as_str()).unwrap(), kind);
    }
    let error = kind_of("presense").unwrap_err().to_string();
    assert!(
        error.contains("presense") && error.contains("`presence`"),
        "{error}"
    );
}
