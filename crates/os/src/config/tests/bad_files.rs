//! One bad file after the other, and exactly what is told of it.

use super::assert_faults;

#[test]
fn an_unknown_key_is_found_at_every_depth() {
    assert_faults(
        "intervall = \"5s\"\n",
        &[r#"slave.toml:1:1: intervall: unknown key "intervall"; did you mean "interval"?"#],
    );
    assert_faults(
        "[spool]\nsync = true\n  bytes-max = 1\n",
        &[r#"slave.toml:3:3: spool.bytes-max: unknown key "bytes-max"; did you mean "bytes_max"?"#],
    );
    assert_faults(
        "[connection.retry]\nfaktor = 2\n",
        &[
            r#"slave.toml:2:1: connection.retry.faktor: unknown key "faktor"; did you mean "factor"?"#,
        ],
    );
    assert_faults(
        "[[check]]\nname = \"a\"\ncommand = [\"a\"]\n\n[[check]]\nname = \"b\"\ncommand = [\"b\"]\nintervall = \"1s\"\n",
        &[
            r#"slave.toml:8:1: check[1].intervall: unknown key "intervall"; did you mean "interval"?"#,
        ],
    );
    assert_faults(
        "[presense]\nlate = 1\n",
        &[
            r#"slave.toml:1:2: presense: unknown key "presense"; expected one of name, interval, labels, connection, spool, check"#,
        ],
    );
    assert_faults(
        "connection = { mdoe = \"pooled\" }\n",
        &[r#"slave.toml:1:16: connection.mdoe: unknown key "mdoe"; did you mean "mode"?"#],
    );
}

#[test]
fn a_wrong_type_says_what_is_expected() {
    assert_faults(
        "[connection]\nport = \"7412\"\n",
        &[
            r#"slave.toml:2:8: connection.port: wrong type: found the string "7412", expected a whole number from 0 to 65535"#,
        ],
    );
    assert_faults(
        "interval = 10\n",
        &[
            r#"slave.toml:1:12: interval: wrong type: found the number 10, expected a duration: a number and a unit, such as "10s", "1m 30s" or "90d""#,
        ],
    );
    assert_faults(
        "spool = \"big\"\n",
        &[r#"slave.toml:1:9: spool: wrong type: found the string "big", expected a table"#],
    );
    assert_faults(
        "[check]\nname = \"a\"\n",
        &["slave.toml:1:1: check: wrong type: found a table, expected an array"],
    );
    assert_faults(
        "[connection]\nmasters = [\"a:1\",\n  2]\n",
        &[
            "slave.toml:3:3: connection.masters[1]: wrong type: found the number 2, expected a string",
        ],
    );
    assert_faults(
        "[connection]\nmode = \"per-mesage\"\n",
        &[
            r#"slave.toml:2:8: connection.mode: unknown value "per-mesage"; did you mean "per-message"?"#,
        ],
    );
}

#[test]
fn out_of_range_says_the_range() {
    assert_faults(
        "interval = \"0s\"\n",
        &["slave.toml:1:12: interval: out of range: 0s is not within 1s to 1h"],
    );
    assert_faults(
        "[connection]\nport = 0\n[connection.retry]\nfactor = 11.5\n[spool]\nbytes_max = \"2 TiB\"\n",
        &[
            "slave.toml:2:8: connection.port: out of range: must be at least 1",
            "slave.toml:4:10: connection.retry.factor: out of range: must be at most 10",
            "slave.toml:6:13: spool.bytes_max: out of range: must be at most 1 TiB",
        ],
    );
    assert_faults(
        "[connection]\nport = 70000\n",
        &[
            "slave.toml:2:8: connection.port: out of range: found the number 70000, expected a whole number from 0 to 65535",
        ],
    );
    assert_faults(
        "[[check]]\nname = \"a\"\ncommand = [\"a\"]\ninterval = \"10ms\"\n",
        &["slave.toml:4:12: check[0].interval: out of range: must be at least 1s"],
    );
}

#[test]
fn a_bad_duration_or_size_shows_how_to_write_one() {
    assert_faults(
        "interval = \"10 parsecs\"\n[spool]\nbytes_max = \"lots\"\n",
        &[
            r#"slave.toml:1:12: interval: bad duration "10 parsecs": expected a number and a unit, such as "10s", "1m 30s" or "90d""#,
            r#"slave.toml:3:13: spool.bytes_max: bad size "lots": expected a number and a unit, such as "64 KiB", "512 MiB" or "10 GB""#,
        ],
    );
}

#[test]
fn all_missing_keys_of_an_element_are_told_beside_its_other_faults() {
    assert_faults(
        "[[check]]\nname = \"a\"\ncommand = [\"a\"]\n[[check]]\nname = \"b\"\n",
        &[r#"slave.toml:4:1: check[1]: missing key "command""#],
    );
    assert_faults(
        "[[check]]\ninterval = \"soon\"\nmode = \"pooled\"\ntimeout = 1\n",
        &[
            r#"slave.toml:1:1: check[0]: missing key "name""#,
            r#"slave.toml:1:1: check[0]: missing key "command""#,
            r#"slave.toml:2:12: check[0].interval: bad duration "soon": expected a number and a unit, such as "10s", "1m 30s" or "90d""#,
            r#"slave.toml:4:1: check[0].timeout: unknown key "timeout"; expected one of name, command, interval, mode"#,
        ],
    );
}

#[test]
fn a_faulty_required_key_is_not_missing_as_well() {
    assert_faults(
        "[[check]]\nname = 5\n",
        &[
            r#"slave.toml:1:1: check[0]: missing key "command""#,
            "slave.toml:2:8: check[0].name: wrong type: found the number 5, expected a string",
        ],
    );
}

#[test]
fn indices_are_those_of_the_file_after_elements_were_taken_out() {
    assert_faults(
        "[[check]]\nname = \"a\"\n[[check]]\ncommand = [\"b\"]\n[[check]]\nname = \"c\"\ncommand = []\n",
        &[
            r#"slave.toml:1:1: check[0]: missing key "command""#,
            r#"slave.toml:3:1: check[1]: missing key "name""#,
            "slave.toml:7:11: check[2].command: length is lower than 1",
        ],
    );
    assert_faults(
        "connection.masters = [1, 2, \"c:3\", 4]\n",
        &[
            "slave.toml:1:23: connection.masters[0]: wrong type: found the number 1, expected a string",
            "slave.toml:1:26: connection.masters[1]: wrong type: found the number 2, expected a string",
            "slave.toml:1:36: connection.masters[3]: wrong type: found the number 4, expected a string",
        ],
    );
}

#[test]
fn a_fault_of_syntax_has_its_line_and_a_caret() {
    assert_faults(
        "name = \"a\"\n\tinterval = 10s\n",
        &[
            "slave.toml:2:13: not TOML: string values must be quoted, expected literal string\n  \
           | \tinterval = 10s\n  | \t           ^",
        ],
    );
    assert_faults(
        "[spool\nsync = true\n",
        &["slave.toml:1:7: not TOML: unclosed table, expected `]`\n  | [spool\n  |       ^"],
    );
    assert_faults(
        "name =",
        &[
            "slave.toml:1:7: not TOML: string values must be quoted, expected literal string\n  \
           | name =\n  |       ^",
        ],
    );
}

#[test]
fn several_faults_of_syntax_come_in_the_order_of_the_file() {
    assert_faults(
        "name = a\nname = \"b\"\n[spool]\n[spool]\nx = [1,\n",
        &[
            "slave.toml:1:8: not TOML: string values must be quoted, expected literal string\n  \
             | name = a\n  |        ^",
            "slave.toml:2:1: not TOML: duplicate key\n  | name = \"b\"\n  | ^",
            "slave.toml:4:2: not TOML: duplicate key\n  | [spool]\n  |  ^",
            "slave.toml:5:8: not TOML: unclosed array, expected `]`\n  | x = [1,\n  |        ^",
        ],
    );
}
