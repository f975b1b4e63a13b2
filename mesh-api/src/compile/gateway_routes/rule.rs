//! The rules of one route.

use std::collections::HashSet;

use super::filters::MadeFilters;
use super::grants::Grants;
use super::header_edits::join_header_edits;
use super::matches::{Rank, expressions};
use crate::compile::condition::ConditionList;
use crate::compile::object_store::{NamespacedName, ObjectStore};
use crate::compile::traffic_policies::duration;
use crate::compile::virtual_services::{
    CheckedExpressions, EXPRESSION_FIX, LEAVE, MAX_EXPRESSIONS, USUAL_RETRY_CONDITIONS,
};
use crate::compile::{MeshConfig, RouteFault};
use crate::kind::Kind;
use crate::resource::Metadata;
use crate::resource::gateway_api::{GatewayRoute, ObjectRef, RouteRule};
use crate::wire::ext::{self, http_route::Action};

/// Retries where a rule does not say how many, as in Istio.
const USUAL_ATTEMPTS: u32 = 2;

/// Makes the rules of one route, and says what of them is not in force.
pub(super) struct RuleMaker<'a, 's> {
    pub kind: Kind,
    pub metadata: &'a Metadata,
    pub route: &'a GatewayRoute,
    pub objects: &'a ObjectStore,
    pub mesh: &'a MeshConfig,
    pub grants: &'a Grants<'a>,
    pub expressions: &'a mut CheckedExpressions,
    /// Services that routes name.
    pub named: &'a mut HashSet<NamespacedName>,
    pub said: &'a mut ConditionList<'s>,
}

/// A rule as agents see it.
pub(super) struct MadeRule {
    /// Without its matches.
    pub route: ext::HttpRoute,
    /// At least one.
    pub matches: Vec<(Rank, ext::HttpMatch)>,
}

impl RuleMaker<'_, '_> {
    /// The rules that requests can take. None: the route is not accepted.
    pub fn rules(&mut self) -> Option<Vec<MadeRule>> {
        let matches = self.route.rules.iter().flat_map(|rule| &rule.matches);
        let expressions: usize = matches.map(|matched| expressions(matched).count()).sum();
        if expressions > MAX_EXPRESSIONS {
            let reason =
                format!("agents hold every regular expression compiled, and these are {expressions}");
            let fix = format!("write at most {MAX_EXPRESSIONS}; compare with paths where that does");
            self.said.ignore_for(RouteFault::UnsupportedValue, "spec.rules", reason, fix);
            self.said.nothing_in_force();
            return None;
        }
        let rules = self.route.rules.iter().enumerate();
        let made = rules.map(|(index, rule)| self.rule(&format!("spec.rules[{index}]"), rule));
        let made: Vec<_> = made.filter(|rule| !rule.matches.is_empty()).collect();
        if made.is_empty() && !self.route.rules.is_empty() {
            let reason = "agents can't use any of its matches, so all requests that it is for get status 404";
            self.said.ignore_for(RouteFault::UnsupportedValue, "spec.rules", reason, EXPRESSION_FIX);
            self.said.nothing_in_force();
        }
        Some(made)
    }

    fn rule(&mut self, path: &str, rule: &RouteRule) -> MadeRule {
        if rule.has_session_persistence {
            let reason = "requests of a client are not kept at one endpoint yet";
            self.said.ignore(format!("{path}.sessionPersistence"), reason, LEAVE);
        }
        let matches = self.matches(path, rule);
        let mut filters = self.filters(path, rule);
        let cors = filters.cors.take();
        let action = self.action(path, rule, filters);
        let name = rule.name.clone().unwrap_or_default();
        let route = ext::HttpRoute { name, action: Some(action), cors, ..ext::HttpRoute::default() };
        MadeRule { route, matches }
    }

    fn action(&mut self, path: &str, rule: &RouteRule, mut filters: MadeFilters) -> Action {
        let backends = rule.backends.iter().enumerate();
        let mut destinations: Vec<_> = backends
            .map(|(index, backend)| self.destination(&format!("{path}.backendRefs[{index}]"), backend))
            .collect();
        let goes_nowhere = destinations.iter().all(|destination| destination.weight == 0);
        if filters.has_unknown {
            return self.failing();
        }
        if let Some(redirect) = filters.redirect.take() {
            self.tell_unused(path, &filters);
            return Action::Redirect(redirect);
        }
        if goes_nowhere {
            self.tell_unused(path, &filters);
            return self.failing();
        }
        join_header_edits(&mut filters, &mut destinations);
        Action::Forward(ext::HttpForward {
            destinations,
            rewrite: filters.rewrite,
            request: filters.request,
            response: filters.response,
            timeout: rule.timeout.and_then(duration),
            retries: retries(rule),
            fault: None,
            mirrors: filters.mirrors,
        })
    }

    /// The status of requests that can't go where the route says. For gRPC it stands for UNAVAILABLE.
    pub(super) fn failure(&self) -> u32 {
        if self.kind == Kind::GRPCRoute { 503 } else { 500 }
    }

    fn failing(&self) -> Action {
        Action::DirectResponse(ext::HttpDirectResponse { status: self.failure(), body: Vec::new() })
    }

    /// A backend that gets copies. None: it can't, which keeps no request from going on.
    pub(super) fn mirror(&mut self, path: &str, backend: &ObjectRef) -> Option<ext::HttpDestination> {
        self.object(path, backend, "it gets no copies").ok()
    }
}

/// When requests are tried again. A rule that asks for it has a try without a response fail, too.
fn retries(rule: &RouteRule) -> Option<ext::HttpRetries> {
    let mut conditions = USUAL_RETRY_CONDITIONS.map(str::to_owned).to_vec();
    let made = match &rule.retry {
        None if rule.try_timeout.is_none() => return None,
        None => ext::HttpRetries { attempts: USUAL_ATTEMPTS, ..ext::HttpRetries::default() },
        Some(retry) => {
            conditions.push("reset".to_owned());
            ext::HttpRetries {
                attempts: retry.attempts.unwrap_or(USUAL_ATTEMPTS),
                statuses: retry.codes.clone(),
                backoff: retry.backoff.and_then(duration),
                least_backoff: retry.backoff.and_then(duration),
                ..ext::HttpRetries::default()
            }
        }
    };
    Some(ext::HttpRetries { conditions, per_try_timeout: rule.try_timeout.and_then(duration), ..made })
}
