//! What would become of an HTTP request: which of its routes it takes and why, by the code that the agents
//! route with.

use std::borrow::Cow;
use std::net::SocketAddr;

use mesh_api::plan::http_routes::{
    Fault, HttpAction, HttpDestination, HttpForward, HttpMatch, HttpRoute, HttpRouteTable, RequestView,
    Retries,
};
use mesh_api::plan::outbound::Destination;
use mesh_api::plan::{self, PortPolicy, Snapshot, Workload};
use serde::Serialize;

use super::destination::Url;

/// Parts in a percent, of which shares of requests are made.
const PER_PERCENT: u32 = 10_000;

/// A request that is asked about.
#[derive(Clone, Debug)]
pub struct Request {
    /// Method.
    pub method: String,
    /// Headers; names in lower case.
    pub headers: Vec<(String, String)>,
    /// What the URL says.
    pub url: Url,
}

impl RequestView for Request {
    fn method(&self) -> &str {
        &self.method
    }

    fn scheme(&self) -> &'static str {
        "http"
    }

    fn authority(&self) -> &str {
        let host = self.headers.iter().find(|(name, _)| name == "host");
        host.map_or(&self.url.authority, |(_, value)| value)
    }

    fn path(&self) -> &str {
        &self.url.path
    }

    fn query(&self) -> Option<&str> {
        self.url.query.as_deref()
    }

    fn header(&self, name: &str) -> Option<Cow<'_, str>> {
        if name == "host" {
            return Some(Cow::Borrowed(self.authority()));
        }
        let mut values = self.headers.iter().filter(|(found, _)| found == name).map(|(_, value)| value);
        let first = Cow::Borrowed(values.next()?.as_str());
        Some(values.fold(first, |joined, value| Cow::Owned(format!("{joined},{value}"))))
    }
}

/// Returns a line with the limits that a policy sets for connections and requests of an agent's clients; none
/// if it sets none.
fn limits_of(policy: &PortPolicy) -> Option<String> {
    let connections = policy.pool.max_connections.map(|most| ("maxConnections", most.get()));
    let all = connections.into_iter().chain(policy.pool.http.limits());
    let mut said: Vec<_> = all.map(|(field, most)| format!("{field} {most}")).collect();
    said.extend(policy.retry_budget.map(|budget| {
        let share = percent(budget.share, u64::from(100 * PER_PERCENT));
        format!("retryBudget {share}, at least {}", budget.min_retry_concurrency)
    }));
    (!said.is_empty()).then(|| format!("limits of each agent: {}", said.join(", ")))
}

/// Reads a header as curl's `-H` has it.
pub fn parse_header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once(':').ok_or("write NAME: VALUE")?;
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if name.is_empty() || !name.bytes().all(is_token) {
        return Err(format!("{name:?} is not a header's name"));
    }
    Ok((name.to_ascii_lowercase(), value.trim().to_owned()))
}

/// What would become of a request.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RequestAnswer {
    /// The object that has the routes.
    pub routes_of: String,
    /// The routes that were tried, up to the one that fits, each with why it does or does not.
    pub tried: Vec<String>,
    /// What the last of them does.
    pub outcome: Vec<String>,
    /// Whether the request needs no endpoint.
    #[serde(skip)]
    pub is_answered_here: bool,
    /// The endpoints that it may go to.
    #[serde(skip)]
    pub endpoints: Vec<plan::Endpoint>,
}

/// Explains a request of `client` to an address whose connections are read.
pub fn explain(
    snapshot: &Snapshot,
    client: &Workload,
    address: SocketAddr,
    table: &HttpRouteTable,
    request: &Request,
) -> RequestAnswer {
    let mut answer = RequestAnswer {
        routes_of: table.source.to_string(),
        tried: Vec::new(),
        outcome: Vec::new(),
        is_answered_here: false,
        endpoints: Vec::new(),
    };
    let found = table.find_route(request, client, address.port());
    for (index, route) in table.routes.iter().enumerate() {
        let fits = found.as_ref().is_some_and(|found| std::ptr::eq(found.route, route));
        let why = match found.as_ref().and_then(|found| found.matched) {
            _ if !fits => why_not(route, request, client, address.port()),
            None => "takes every request".to_owned(),
            Some(matched) => format!("fits{}", of_match(route, matched)),
        };
        let source = route.source.as_ref().map(|source| format!(" of {source}")).unwrap_or_default();
        answer.tried.push(format!("route {}{}{source}: {why}", index + 1, quoted_name(&route.name)));
        if fits {
            break;
        }
    }
    match found.map(|found| &found.route.action) {
        None => {
            answer.is_answered_here = true;
            answer.outcome.push("no route fits: 404".to_owned());
        }
        Some(HttpAction::Redirect(redirect)) => {
            answer.is_answered_here = true;
            let location = redirect.location(request, found.and_then(|found| found.matched), address.port());
            answer.outcome.push(format!("redirected with {} to {location}", redirect.status.as_u16()));
        }
        Some(HttpAction::DirectResponse(response)) => {
            answer.is_answered_here = true;
            answer.outcome.push(format!("answered by the mesh with {}", response.status.as_u16()));
        }
        Some(HttpAction::Forward(forward)) => {
            for destination in &forward.destinations {
                let share = percent(destination.weight, forward.total_weight());
                if let Some(status) = destination.status {
                    let host = name_of(destination);
                    answer.outcome.push(format!("{share} end with {}: {host}", status.as_u16()));
                    continue;
                }
                let to = destination.endpoints(snapshot, client, address);
                answer.outcome.push(format!("{share} to {}: {}", name_of(destination), summary(&to)));
                if let Destination::Service { endpoints, policy, .. } = to
                    && destination.weight > 0
                {
                    answer.outcome.extend(limits_of(&policy));
                    answer.endpoints.extend(endpoints.iter().cloned());
                }
            }
            answer.outcome.extend(conditions_of(forward));
        }
    }
    answer
}

fn why_not(route: &HttpRoute, request: &Request, client: &Workload, port: u16) -> String {
    let reasons = route.matches.iter().filter_map(|condition| {
        let unmet = condition.unmet_condition(request, client, port)?;
        Some(format!("{unmet} does not fit{}", of_match(route, condition)))
    });
    reasons.collect::<Vec<_>>().join("; ")
}

/// Which of a route's matches it is, if there are several.
fn of_match(route: &HttpRoute, condition: &HttpMatch) -> String {
    let index = route.matches.iter().position(|it| std::ptr::eq(it, condition)).unwrap_or_default();
    if route.matches.len() > 1 {
        format!(" (match {}{})", index + 1, quoted_name(&condition.name))
    } else {
        String::new()
    }
}

fn quoted_name(name: &str) -> String {
    if name.is_empty() { String::new() } else { format!(" {name:?}") }
}

fn percent(weight: u32, total: u64) -> String {
    let per_mille = u64::from(weight) * 1000 / total.max(1);
    if per_mille.is_multiple_of(10) {
        format!("{} %", per_mille / 10)
    } else {
        format!("{}.{} %", per_mille / 10, per_mille % 10)
    }
}

fn name_of(destination: &HttpDestination) -> String {
    let subset = destination.subset.as_ref().map(|subset| format!(", subset {subset}")).unwrap_or_default();
    format!("{}{subset}", destination.host)
}

fn summary(to: &Destination) -> String {
    match to {
        Destination::Service { policy, endpoints, .. } => {
            let noun = if endpoints.len() == 1 { "endpoint" } else { "endpoints" };
            format!("{} over {} {noun}", policy.lb, endpoints.len())
        }
        other => format!("503, {other}"),
    }
}

/// What else holds for the request.
fn conditions_of(forward: &HttpForward) -> Vec<String> {
    let HttpForward { timeout, retries, fault, .. } = forward;
    let mut lines = Vec::new();
    if let Some(timeout) = timeout {
        lines.push(format!("timeout {}", humantime::format_duration(*timeout)));
    }
    lines.push(retries_line(retries));
    let Fault { delay, abort } = fault;
    if let Some((delay, share)) = delay {
        let delay = humantime::format_duration(*delay);
        lines.push(format!(
            "{} % of requests are delayed by {delay}",
            f64::from(*share) / f64::from(PER_PERCENT)
        ));
    }
    if let Some((status, share)) = abort {
        let percent = f64::from(*share) / f64::from(PER_PERCENT);
        lines.push(format!("{percent} % of requests end with {}", status.as_u16()));
    }
    lines
}

fn retries_line(retries: &Retries) -> String {
    if retries.attempts == 0 {
        return "no retries".to_owned();
    }
    let conditions = &retries.conditions;
    let names = [
        (conditions.server_error, "5xx"),
        (conditions.gateway_error, "gateway-error"),
        (conditions.reset, "reset"),
        (conditions.reset_before_request, "reset-before-request"),
        (conditions.connect_failure, "connect-failure"),
        (conditions.conflict, "retriable-4xx"),
    ];
    let mut names: Vec<String> =
        names.into_iter().filter(|(is_set, _)| *is_set).map(|(_, name)| name.to_owned()).collect();
    names.extend(conditions.statuses.iter().map(ToString::to_string));
    format!("up to {} retries on {}", retries.attempts, names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_as_curl_has_them() {
        assert_eq!(parse_header("User: test "), Ok(("user".to_owned(), "test".to_owned())));
        assert_eq!(parse_header("x-empty:"), Ok(("x-empty".to_owned(), String::new())));
        assert!(
            parse_header("no colon").is_err()
                && parse_header(": x").is_err()
                && parse_header("a b: x").is_err()
        );
    }

    #[test]
    fn shares_are_in_percent() {
        assert_eq!(percent(80, 100), "80 %");
        assert_eq!(percent(1, 3), "33.3 %");
        assert_eq!(percent(0, 0), "0 %");
    }
}
