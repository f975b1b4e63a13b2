//! A pod's listening sockets: three for each worker, in the pod's network namespace.

use std::io;
use std::net::IpAddr;

use mesh_common::maps::ListenerKind;
use mesh_common::{HBONE_PORT, INBOUND_PORT, OUTBOUND_PORT};

use crate::proxy::worker::PodListeners;
use crate::sys::ebpf::{self, Programs};
use crate::sys::{Netns, listen};

/// Why a pod has no listeners.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// Usually: a program of the pod has the port.
    #[error("port {port} of the pod: {error}")]
    Listen { port: u16, error: io::Error },
    #[error(transparent)]
    Ebpf(#[from] ebpf::Error),
}

/// Opens a pod's listeners for `workers` workers, and gives the inbound ones to `sk_lookup`.
pub(super) fn open(
    programs: &mut Programs,
    netns: &Netns,
    addresses: &[IpAddr],
    workers: u8,
) -> Result<Vec<PodListeners>, Error> {
    let on = |port| listen(netns, port).map_err(|error| Error::Listen { port, error });
    (0..workers)
        .map(|worker| {
            let listeners = PodListeners {
                outbound: on(OUTBOUND_PORT)?,
                inbound: on(INBOUND_PORT)?,
                hbone: on(HBONE_PORT)?,
            };
            programs.add_listener(addresses, ListenerKind::Plaintext, worker, &listeners.inbound)?;
            programs.add_listener(addresses, ListenerKind::Hbone, worker, &listeners.hbone)?;
            Ok(listeners)
        })
        .collect()
}
