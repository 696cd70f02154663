//! scratch
use rollcall_e2e::*;
use rollcall_os::clock;
#[test]
fn zz() {
  for round in 0..40 {
    let folder = tempfile::tempdir().unwrap();
    let mut master = Master::new(folder.path(), "m");
    master.start();
    let mut identity = peer::Identity::new("half", 1000);
    let (mut peer, _) = Peer::open(master.address(), &identity).unwrap();
    peer.report(&mut identity).unwrap();
    let s = clock::boot();
    let mut n = 0;
    let mut last = String::new();
    loop {
        n += 1;
        let t = clock::boot();
        let r = master.api().slave("half").map(|d| d.row.sequence);
        let took= clock::boot().saturating_since(t);
        if took.as_millis() > 100 { println!("slow {took:?} {r:?}"); }
        if let Err(e) = &r { last = format!("{e}"); }
        let e = clock::boot().saturating_since(s);
        if r.is_ok() || e.as_secs() > 20 { println!("{round}: {e:?} {n} {last}"); break }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
  }
}
