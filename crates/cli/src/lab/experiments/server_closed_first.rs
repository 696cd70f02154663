//! EADDRINUSE from a TIME_WAIT that the server itself left behind.

use super::{First, explain, is_at, number, said, time_wait};
use crate::lab::arena::Arena;
use crate::lab::sockets::{Reuse, is_in_use, listen};
use crate::lab::tale::Tale;

pub(super) fn run(arena: &Arena, tale: &mut Tale) -> anyhow::Result<()> {
    fail(arena, tale)?;
    tale.cure(
        "Every listener sets SO_REUSEADDR, from its first start on: the kernel looks at what the old one had \
         set as well.",
    );
    mend(arena, tale)?;
    tale.note(format!(
        "TIME_WAIT lasts 60 s; that is a constant in the kernel, and no sysctl. net.ipv4.tcp_fin_timeout \
         ({} here) is the time of FIN_WAIT_2 without a process, another state.",
        arena.get("net.ipv4.tcp_fin_timeout")
    ));
    Ok(())
}

fn fail(arena: &Arena, tale: &mut Tale) -> anyhow::Result<()> {
    let address = arena.server(0)?;
    tale.action(format!(
        "A server listens on {address} without SO_REUSEADDR. It answers one client, closes that connection \
         before the client does, and ends."
    ));
    let listener = listen(address, Reuse::Off)?;
    super::round(arena, &listener, First::Server)?;
    drop(listener);
    let left = arena.time_wait(is_at(address))?;
    tale.fact("time_wait", left.len());
    let text = left.iter().map(time_wait).collect::<Vec<_>>().join("; ");
    tale.expect(
        left.len() == 1,
        format!("the server's port keeps {} socket: {text}", left.len()),
        "one socket in TIME_WAIT, on the side that closed first",
    );
    for (reuse, text) in [
        (Reuse::Off, "It is started again."),
        (Reuse::On, "It is started again, now with SO_REUSEADDR."),
    ] {
        tale.action(text);
        let error = listen(address, reuse).err();
        let held = is_in_use(error.as_ref());
        let name = match reuse {
            Reuse::Off => "restart_errno",
            Reuse::On => "restart_with_reuse_errno",
        };
        tale.fact(name, number(error.as_ref()));
        let why = match (held, reuse) {
            (true, Reuse::On) => {
                "; it comes too late, because the socket in TIME_WAIT is one that did not set it"
            }
            _ => "",
        };
        tale.expect(held, format!("{}{why}", said(error.as_ref())), "error 98");
        if reuse == Reuse::On {
            explain(address, error.as_ref(), tale);
        }
    }
    Ok(())
}

fn mend(arena: &Arena, tale: &mut Tale) -> anyhow::Result<()> {
    let address = arena.server(1)?;
    tale.action(format!(
        "The same on {address}, with SO_REUSEADDR on both starts."
    ));
    let listener = listen(address, Reuse::On)?;
    super::round(arena, &listener, First::Server)?;
    drop(listener);
    let left = arena.time_wait(is_at(address))?.len();
    let again = listen(address, Reuse::On);
    tale.fact("cured_beside_time_wait", left);
    tale.expect(
        left == 1 && again.is_ok(),
        match &again {
            Ok(_) => format!("bind() and listen() succeed, beside {left} socket in TIME_WAIT"),
            Err(error) => format!("{error}, beside {left} socket in TIME_WAIT"),
        },
        "success beside one socket in TIME_WAIT",
    );
    let served = super::round(arena, &again?, First::Server);
    tale.expect(
        served.is_ok(),
        match &served {
            Ok(()) => "the next client gets its answer".to_owned(),
            Err(error) => format!("the next client: {error}"),
        },
        "an answer",
    );
    Ok(())
}
