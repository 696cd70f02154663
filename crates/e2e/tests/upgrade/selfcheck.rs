//! `--selfcheck`: can this program go on from what is there?

use std::process::Output;

use rollcall_e2e::Peer;
use rollcall_e2e::image::{Image, Kind};
use rollcall_e2e::peer::Identity;
use rollcall_e2e::skip::{require_root_or_skip_loudly, skip_loudly};
use rusqlite::Connection;

use crate::upgraded::Upgraded;

fn said(output: &Output) -> String {
    let text = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    text.concat()
}

/// Read beside a running master: what is there, and what this build could not go on from.
#[test]
fn a_selfcheck_reads_what_a_start_reads() {
    let mut upgraded = Upgraded::started();
    let mut identity = Identity::new("web-1", 60_000);
    let (mut peer, _) = Peer::open(upgraded.master.address(), &identity).expect("a session");
    peer.report(&mut identity).expect("an ack");
    let output = upgraded.selfcheck();
    let text = said(&output);
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.contains(" can take over: 1 slaves and "), "{text}");
    let database = upgraded.folder.path().join("master-state/master.db");
    let layout: i64 = {
        let open = Connection::open(&database).expect("the store");
        open.pragma_query_value(None, "user_version", |row| row.get(0))
            .expect("its layout")
    };
    assert!(text.contains(&format!("layout {layout}\n")), "{text}");
    upgraded.master.config.set("session.windwo", 8);
    upgraded.master.config.write(&upgraded.master.config_file());
    let output = upgraded.selfcheck();
    assert_eq!(output.status.code(), Some(78), "{}", said(&output));
    upgraded.master.config.set("session", toml::Table::new());
    upgraded.master.config.write(&upgraded.master.config_file());

    // Somebody has run a newer build on it meanwhile.
    let set_layout = |layout: i64| {
        let open = Connection::open(&database).expect("the store");
        open.pragma_update(None, "user_version", layout)
            .expect("it can be written");
    };
    set_layout(layout + 1);
    let output = upgraded.selfcheck();
    assert_eq!(output.status.code(), Some(74), "{}", said(&output));
    let reason = upgraded.upgrade_in_vain();
    assert!(reason.starts_with("exit status: 74: "), "{reason}");
    assert!(
        reason.contains("install the newer rollcall-master"),
        "{reason}"
    );
    peer.report(&mut identity).expect("an ack");
    set_layout(layout);
    upgraded.upgrade();
    peer.report(&mut identity).expect("an ack");
}

/// On btrfs a running master keeps the index of its log in memory, and nobody else can read the store.
#[test]
fn a_store_that_copies_on_write_is_no_obstacle() {
    let name = "a store on btrfs under an upgrade";
    if !require_root_or_skip_loudly(name) {
        return;
    }
    let image = match Image::mount(Kind::Btrfs) {
        Ok(image) => image,
        Err(error) => return skip_loudly(name, &error),
    };
    let mut upgraded = Upgraded::new();
    let state = image.path().join("state").to_string_lossy().into_owned();
    upgraded.master.config.set("state.directory", state);
    upgraded.start();
    let mut identity = Identity::new("web-1", 60_000);
    let (mut peer, _) = Peer::open(upgraded.master.address(), &identity).expect("a session");
    peer.report(&mut identity).expect("an ack");
    let output = upgraded.selfcheck();
    let text = said(&output);
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.contains("copies on write"), "{text}");
    upgraded.upgrade();
    peer.report(&mut identity).expect("an ack");
    assert!(upgraded.master.terminate().success());
    let text = said(&upgraded.selfcheck());
    assert!(text.contains("1 slaves"), "{text}");
}
