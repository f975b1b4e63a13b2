//! The map with the original destinations and the clients of sockets.

use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use aya::maps::{Map, MapData, MapError, SkStorage};
use mesh_common::maps::AddressPort;

use super::maps_handed_to_proxy::map_from_fd;
use super::{Error, PEER, map_error};

/// One worker's handle on the map `PEER`.
pub struct SocketAddressMap {
    peer: SkStorage<MapData, AddressPort>,
}

impl SocketAddressMap {
    pub(super) fn new(peer: OwnedFd) -> Result<Self, Error> {
        let peer = Map::SkStorage(map_from_fd(PEER, peer)?).try_into().map_err(map_error(PEER))?;
        Ok(Self { peer })
    }

    /// Returns the destination that the client of an accepted connection asked for; `None` if it was not
    /// redirected but connected to the proxy itself. Errors: the map can't be read.
    pub fn original_destination(&self, accepted: &impl AsRawFd) -> Result<Option<AddressPort>, Error> {
        match self.peer.get(accepted, 0) {
            Ok(endpoint) => Ok(Some(endpoint)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(map_error(PEER)(error)),
        }
    }

    /// Has the application that accepts the connection which `socket` is about to open see `client` as its
    /// peer. Errors: the map can't be written.
    pub fn set_client_address(&mut self, socket: &impl AsRawFd, client: SocketAddr) -> Result<(), Error> {
        let client = AddressPort::new(client.ip().into(), client.port());
        self.peer.insert(socket, client, 0).map_err(map_error(PEER))
    }
}
