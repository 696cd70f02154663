//! A master that can't bind: one line says who holds the port and what helps, in the log with fields
//! and on standard error, and the exit code is 69.

use std::ffi::OsString;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};

use rollcall_e2e::skip::{require_root_or_skip_loudly, skip_loudly};
use rollcall_e2e::wait::{PATIENCE, poll_until};
use rollcall_e2e::{Daemon, LogLine, Master, binaries};
use rollcall_os::diag::ports::{local_port_range, unprivileged_from};
use socket2::{Domain, Socket, Type};

/// "nobody", who exists everywhere.
const NOBODY: u32 = 65_534;
const BIND: i32 = 69;

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// Has a master listen on `address` for slaves, which must fail.
fn refused(address: SocketAddr) -> LogLine {
    let folder = tempfile::tempdir().expect("a folder");
    let mut master = Master::new(folder.path(), "master");
    let addresses = vec![address.to_string()];
    master
        .config
        .set("listen.addresses", addresses)
        // Otherwise only loopback is accepted.
        .set("tls.mode", "off");
    master.spawn();
    let line = the_line(&mut master);
    // A port may be taken only for a moment, so that one was waited for.
    let retried = master.log().events("bind_retried").len();
    let is_in_use = line.number("errno") == Some(98);
    assert_eq!(retried, usize::from(is_in_use), "{line:?}");
    line
}

/// The line about the failure, which standard error must have as well.
#[track_caller]
fn the_line(master: &mut Daemon) -> LogLine {
    let status = master.wait(PATIENCE);
    assert_eq!(status.code(), Some(BIND), "{status}");
    let mut lines = master.log().events("bind_failed");
    assert_eq!(lines.len(), 1, "{lines:?}");
    let line = lines.remove(0);
    let stderr = master.stderr();
    for field in ["finding", "remedy", "address"] {
        let text = line.text(field);
        assert!(!text.is_empty(), "{field}: {line:?}");
        assert!(stderr.contains(text), "{text:?} is not in {stderr}");
    }
    assert!(stderr.contains("exit code 69 (bind)"), "{stderr}");
    line
}

#[track_caller]
fn assert_is_held_by_this_process(line: &LogLine) {
    assert_eq!(
        line.number("holder_pid"),
        Some(u64::from(std::process::id()))
    );
    let own = fs::read_to_string("/proc/self/cmdline").expect("a command line");
    let program = own.split('\0').next().expect("a program");
    // Long ones are cut.
    let shown: String = program.chars().take(100).collect();
    let command = line.text("holder_command");
    assert!(command.starts_with(&shown), "{command}");
    assert!(!line.text("holder_user").is_empty(), "{line:?}");
    assert!(line.text("holder_since").starts_with("20"), "{line:?}");
}

#[track_caller]
fn assert_says(line: &LogLine, field: &str, part: &str) {
    let text = line.text(field);
    assert!(text.contains(part), "{part:?} is not in {field} {text:?}");
}

#[test]
fn another_listener_is_named() {
    let holder = TcpListener::bind(loopback(0)).expect("a listener");
    let address = holder.local_addr().expect("its address");
    let line = refused(address);
    assert_eq!(
        (line.text("cause"), line.number("errno")),
        ("listener", Some(98))
    );
    assert_is_held_by_this_process(&line);
    assert_says(&line, "finding", &format!("listens on {address} already"));
    assert_says(&line, "remedy", "or configure another port");
}

#[test]
fn a_listener_on_every_address_is_named() {
    let holder = TcpListener::bind("0.0.0.0:0").expect("a listener");
    let port = holder.local_addr().expect("its address").port();
    let line = refused(loopback(port));
    assert_is_held_by_this_process(&line);
    assert_says(&line, "finding", "which is every address");
}

#[test]
fn the_http_address_is_explained_as_well() {
    let holder = TcpListener::bind(loopback(0)).expect("a listener");
    let address = holder.local_addr().expect("its address").to_string();
    let folder = tempfile::tempdir().expect("a folder");
    let mut master = Master::new(folder.path(), "master");
    master.config.set("http.address", address.clone());
    master.spawn();
    let line = the_line(&mut master);
    assert_eq!(
        (line.text("cause"), line.text("address")),
        ("listener", &*address)
    );
    assert_is_held_by_this_process(&line);
}

#[test]
fn an_outgoing_connection_that_took_the_port_is_named() {
    let service = TcpListener::bind(loopback(0)).expect("a listener");
    let remote = service.local_addr().expect("its address");
    let client = TcpStream::connect(remote).expect("a connection");
    let local = client.local_addr().expect("its address");
    let line = refused(local);
    assert_eq!(line.text("cause"), "outgoing_connection");
    assert_is_held_by_this_process(&line);
    assert_eq!(line.text("holder_remote"), remote.to_string());
    assert_says(
        &line,
        "finding",
        &format!("{local} -> {remote} (ESTABLISHED)"),
    );
    assert_says(&line, "remedy", "net.ipv4.ip_local_reserved_ports=");
    let range = local_port_range().expect("a range").to_string();
    assert_says(&line, "remedy", &range);
}

#[test]
fn time_wait_of_a_listener_without_reuseaddr_is_told_with_its_end() {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    listener.bind(&loopback(0).into()).expect("a port");
    listener.listen(8).expect("a listener");
    let listener = TcpListener::from(listener);
    let address = listener.local_addr().expect("its address");
    for _ in 0..2 {
        let client = TcpStream::connect(address).expect("a connection");
        // Closed on this side first.
        drop(listener.accept().expect("its other end"));
        drop(client);
    }
    drop(listener);
    let line = refused(address);
    assert_eq!(line.text("cause"), "connections_of_a_listener");
    let left_ms = line.number("time_wait_ends_ms").expect("an end");
    assert!((1..60_000).contains(&left_ms), "{left_ms}");
    assert_says(&line, "finding", "2 in TIME_WAIT, the last for");
    let wait = format!("wait these {} s", left_ms.div_ceil(1000));
    assert_says(&line, "remedy", &wait);
    assert_eq!(line.number("holder_pid"), None);
}

#[test]
fn an_address_of_another_host_is_told_with_those_of_this_one() {
    let line = refused("192.0.2.1:7412".parse().expect("an address"));
    assert_eq!(
        (line.text("cause"), line.number("errno")),
        ("not_local", Some(99))
    );
    assert_says(&line, "finding", "no address 192.0.2.1; it has 127.0.0.1");
    assert_says(&line, "remedy", "freebind");
}

/// A master of the user nobody, with a folder and a copy of the program that nobody may use.
fn as_nobody(name: &str, folder: &Path, http: SocketAddr) -> Option<Daemon> {
    if !require_root_or_skip_loudly(name) {
        return None;
    }
    let program = folder.join("rollcall-master");
    binaries::install(&binaries::path(binaries::MASTER), &program);
    chown(folder, Some(NOBODY), Some(NOBODY)).expect("a folder of nobody's");
    let mut master = Master::new(folder, "master");
    master.config.set("http.address", http.to_string());
    let config = master.config_file();
    master.config.write(&config);
    let user = NOBODY.to_string();
    let (path, config) = (program.to_string_lossy(), config.to_string_lossy());
    let arguments = [
        &["--reuid", &user, "--regid", &user, "--clear-groups"][..],
        &["--bounding-set=-all", "--inh-caps=-all", "--"],
        &[&path, "--log-format", "json", "--config", &config],
    ]
    .concat();
    let setpriv = ["/usr/bin/setpriv", "/bin/setpriv"].map(Path::new);
    let Some(setpriv) = setpriv.into_iter().find(|path| path.exists()) else {
        skip_loudly(name, "there is no setpriv (of util-linux)");
        return None;
    };
    Some(Daemon::spawn("master", setpriv, arguments, folder))
}

#[test]
fn a_privileged_port_is_told_with_the_capability() {
    let name = "a privileged port without the capability";
    let folder = tempfile::tempdir().expect("a folder");
    if unprivileged_from() <= 81 {
        return skip_loudly(name, "every user may bind port 81 here");
    }
    let Some(mut master) = as_nobody(name, folder.path(), loopback(81)) else {
        return;
    };
    let line = the_line(&mut master);
    assert_eq!(
        (line.text("cause"), line.number("errno")),
        ("privileged_port", Some(13))
    );
    assert_says(&line, "finding", "need CAP_NET_BIND_SERVICE");
    assert_says(&line, "remedy", "AmbientCapabilities=CAP_NET_BIND_SERVICE");
}

/// A control group that is named as the one of a systemd unit. Removed when it is dropped, after the
/// processes in it have ended.
struct Unit {
    name: String,
    folder: PathBuf,
}

impl Unit {
    fn new_or_skip_loudly(test: &str) -> Option<Self> {
        if !require_root_or_skip_loudly(test) {
            return None;
        }
        let name = format!("rollcall-test-{}.service", std::process::id());
        // Beside version 1, or alone.
        let mounts = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"].map(Path::new);
        let mut mounts = mounts.into_iter();
        let mount = mounts.find(|mount| mount.join("cgroup.procs").exists());
        let made = mount.map(|mount| mount.join(&name)).filter(|folder| {
            let is_made = fs::create_dir(folder).is_ok();
            is_made && folder.join("cgroup.procs").exists()
        });
        if made.is_none() {
            skip_loudly(test, "no control group of version 2 can be made");
        }
        made.map(|folder| Self { name, folder })
    }

    /// A master in this group.
    fn start(&self, folder: &Path, master: &Master) -> Daemon {
        let config = master.config_file();
        master.config.write(&config);
        let (program, procs) = (
            binaries::path(binaries::MASTER),
            self.folder.join("cgroup.procs"),
        );
        let script = "echo $$ >\"$1\" && exec \"$2\" --log-format json --config \"$3\"";
        let [procs, program, config] = [procs, program, config].map(PathBuf::into_os_string);
        let [sh, option, script] = ["sh", "-c", script].map(OsString::from);
        let arguments = [option, script, sh, procs, program, config];
        let mut holder = Daemon::spawn("holder", Path::new("/bin/sh"), arguments, folder);
        holder.wait_for_event("master_ready");
        holder
    }
}

impl Drop for Unit {
    fn drop(&mut self) {
        // Until the last process has left it, which is a moment after its end.
        let removed = poll_until(PATIENCE, || fs::remove_dir(&self.folder).ok());
        if removed.is_none() {
            eprintln!("{} can't be removed", self.folder.display());
        }
    }
}

#[test]
fn the_unit_of_a_holder_is_told_also_without_root() {
    let name = "the unit of a holder";
    let Some(unit) = Unit::new_or_skip_loudly(name) else {
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let master = Master::new(folder.path(), "holder");
    let holder = unit.start(folder.path(), &master);
    let line = refused(master.address());
    assert_eq!(line.number("holder_pid"), Some(u64::from(holder.pid())));
    assert_eq!(line.text("holder_unit"), unit.name);
    let stop = format!("`systemctl stop {}`", unit.name);
    assert_says(&line, "remedy", &stop);
    // To nobody the kernel shows no descriptors of root's, but the socket's control group.
    let folder = tempfile::tempdir().expect("a folder");
    let Some(mut other) = as_nobody(name, folder.path(), master.address()) else {
        return;
    };
    let line = the_line(&mut other);
    assert_eq!(line.number("holder_pid"), Some(u64::from(holder.pid())));
    assert_eq!(line.text("holder_unit"), unit.name);
    assert_says(&line, "finding", "most likely pid ");
    assert_says(&line, "finding", "for certain only as root");
}

#[test]
fn without_root_a_foreign_holder_is_not_passed_over() {
    let folder = tempfile::tempdir().expect("a folder");
    let holder = TcpListener::bind(loopback(0)).expect("a listener");
    let address = holder.local_addr().expect("its address");
    let name = "a holder that only root can see";
    let Some(mut master) = as_nobody(name, folder.path(), address) else {
        return;
    };
    let line = the_line(&mut master);
    assert_eq!(
        (line.text("cause"), line.text("holder_user")),
        ("listener", "root")
    );
    assert_says(&line, "finding", &format!("listens on {address} already"));
    // Where the control group has one process of root's only, it is named, as likely.
    let finding = line.text("finding");
    let is_said = finding.contains("not visible without root") || finding.contains("most likely");
    assert!(is_said, "{finding}");
}
