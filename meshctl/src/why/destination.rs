//! Where a program says that it wants to connect to.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

use anyhow::{Result, bail};
use mesh_api::plan::{Service, Snapshot};

/// A name or address, and a port; or a URL, whose port is 80 if it says none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    host: Host,
    port: u16,
    url: Option<Url>,
}

/// What a URL says of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    /// Host, and the port if it says one.
    pub authority: String,
    /// Path, `/` if it says none.
    pub path: String,
    /// Query, without its `?`.
    pub query: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Host {
    Address(IpAddr),
    Name(String),
}

impl Destination {
    /// Returns what the URL says of the request; none if it is no URL.
    pub fn url(&self) -> Option<&Url> {
        self.url.as_ref()
    }

    /// The addresses that a client in `namespace` may come to use: the service's first of each family, since
    /// its others lead to the same workloads, or for a headless one those of each of its workloads.
    pub fn addresses(&self, snapshot: &Snapshot, namespace: &str) -> Result<Vec<SocketAddr>> {
        let name = match &self.host {
            Host::Address(ip) => return Ok(vec![SocketAddr::new(*ip, self.port)]),
            Host::Name(name) => name,
        };
        let Some(service) = snapshot.resolve_host(name, namespace) else {
            bail!(
                "no service that a pod in {namespace} could see is called {name}; an address can be given instead"
            );
        };
        let addresses = service_addresses(snapshot, &service);
        if addresses.is_empty() {
            bail!("service {} is headless and has no workload: its name does not resolve", service.key);
        }
        Ok(addresses.into_iter().map(|ip| SocketAddr::new(ip, self.port)).collect())
    }
}

fn service_addresses(snapshot: &Snapshot, service: &Arc<Service>) -> Vec<IpAddr> {
    if service.addresses.is_empty() {
        let members = snapshot.workloads_of_service(service);
        return members.iter().flat_map(|it| first_of_each_family(it.addresses.iter().copied())).collect();
    }
    first_of_each_family(service.addresses.iter().map(|vip| vip.addr().to_canonical())).collect()
}

/// In the order in which they come.
fn first_of_each_family(addresses: impl Iterator<Item = IpAddr>) -> impl Iterator<Item = IpAddr> {
    let mut seen = [false; 2];
    addresses.filter(move |ip| !std::mem::replace(&mut seen[usize::from(ip.is_ipv6())], true))
}

/// Reads what is behind the scheme of a URL.
fn of_url(text: &str) -> Result<Destination, String> {
    let (authority, rest) = text.split_at(text.find(['/', '?']).unwrap_or(text.len()));
    let (path, query) = rest.split_once('?').map_or((rest, None), |(path, query)| (path, Some(query)));
    let has_port =
        authority.rsplit_once(':').is_some_and(|(host, _)| !host.contains(':') || host.ends_with(']'));
    let with_port = if has_port { authority.to_owned() } else { format!("{authority}:80") };
    let url = Url {
        authority: authority.to_owned(),
        path: if path.is_empty() { "/".to_owned() } else { path.to_owned() },
        query: query.map(str::to_owned),
    };
    Ok(Destination { url: Some(url), ..with_port.parse()? })
}

impl FromStr for Destination {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(rest) = text.strip_prefix("http://") {
            return of_url(rest);
        }
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(Self {
                host: Host::Address(address.ip().to_canonical()),
                port: address.port(),
                url: None,
            });
        }
        let (name, port) = text.rsplit_once(':').ok_or("a port is missing: HOST:PORT")?;
        if name.contains(':') {
            return Err("an IPv6 address is written in brackets: [ADDRESS]:PORT".into());
        }
        let port =
            port.parse().ok().filter(|port| *port > 0).ok_or("the port is no number from 1 to 65535")?;
        if name.is_empty() {
            return Err("a host is missing: HOST:PORT".into());
        }
        Ok(Self { host: Host::Name(name.into()), port, url: None })
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Address(ip) => SocketAddr::new(*ip, self.port).fmt(f),
            Host::Name(name) => write!(f, "{name}:{}", self.port),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_people_write() {
        for text in ["web:80", "web.shop.svc.cluster.local:80", "10.96.0.1:80", "[fd00::1]:80"] {
            assert_eq!(text.parse::<Destination>().unwrap().to_string(), text);
        }
        for (text, address, path, query) in [
            ("http://web", "web:80", "/", None),
            ("http://web/a?b=c", "web:80", "/a", Some("b=c")),
            ("http://web:8080?x", "web:8080", "/", Some("x")),
            ("http://[fd00::1]/", "[fd00::1]:80", "/", None),
        ] {
            let parsed = text.parse::<Destination>().unwrap();
            let url = parsed.url().unwrap();
            assert_eq!((url.path.as_str(), url.query.as_deref()), (path, query), "{text}");
            assert_eq!(parsed.to_string(), address, "{text}");
        }
        let mapped = "[::ffff:10.96.0.1]:80".parse::<Destination>().unwrap();
        assert_eq!(mapped.to_string(), "10.96.0.1:80");
    }

    #[test]
    fn says_what_is_wrong() {
        let wrong = |text: &str| text.parse::<Destination>().unwrap_err();
        assert!(wrong("web").contains("port is missing"));
        assert!(wrong("fd00::1:80").contains("brackets"));
        assert!(wrong("web:http").contains("no number"));
        assert!(wrong("web:0").contains("no number"));
        assert!(wrong(":80").contains("host is missing"));
    }
}
