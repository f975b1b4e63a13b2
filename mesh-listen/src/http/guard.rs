//! Guards that more than one endpoint has.

use http::Method;

use super::Guard;
use crate::Peer;

/// Everybody may ask.
pub fn everybody() -> Guard {
    Box::new(|_, _| Ok(()))
}

/// Nobody changes anything: `GET` and `HEAD` only.
pub fn readers_only() -> Guard {
    Box::new(|_, parts| {
        if matches!(parts.method, Method::GET | Method::HEAD) {
            Ok(())
        } else {
            Err("this address is for reading; changes are made through the Unix socket (--admin-socket)"
                .to_owned())
        }
    })
}

/// Root, and the user that this process runs as, over a Unix socket.
pub fn owner() -> Guard {
    let own = rustix::process::geteuid().as_raw();
    Box::new(move |peer, _| match peer {
        Peer::User { uid } if *uid == 0 || *uid == own => Ok(()),
        Peer::User { uid } => Err(format!("this socket is for root, not for the user {uid}")),
        Peer::Network { .. } => Err("this endpoint is for a Unix socket".to_owned()),
    })
}
