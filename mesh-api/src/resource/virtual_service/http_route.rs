//! `http[]`: where requests go, and what is done to them on the way.

use std::time::Duration;

use super::{
    Context, CorsPolicy, DirectResponse, Fault, Headers, HttpMatch, HttpRouteDestination, Mirror, Redirect,
    Retries, Rewrite, unreachable::EarlierRoutes, values,
};
use crate::document::cursor::{Cursor, Fields};
use crate::resource::metadata::is_label;

/// A route of requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpRoute {
    /// Name, for logs. `None`: it has none.
    pub name: Option<String>,
    /// Requests that it is for: those of any of these. Empty: all.
    pub matches: Vec<HttpMatch>,
    /// What becomes of them.
    pub action: RouteAction,
    /// Changes of path and host. `None`: none.
    pub rewrite: Option<Rewrite>,
    /// Time that a request has, with all tries. `None`: as long as it takes.
    pub timeout: Option<Duration>,
    /// When it is tried again. `None`: as is usual in the mesh.
    pub retries: Option<Retries>,
    /// What is done to it on purpose. `None`: nothing.
    pub fault: Option<Fault>,
    /// Services that get copies.
    pub mirrors: Vec<Mirror>,
    /// Which other origins may send such requests. `None`: browsers are told nothing.
    pub cors_policy: Option<CorsPolicy>,
    /// Changes of headers, before those of the destination if it is the only one, and after them else.
    /// [`Rewrite::authority`] and the authority in here, of which at most one is set, are instead of that of
    /// the destination's.
    pub headers: Headers,
}

/// What becomes of the requests of a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouteAction {
    /// They go to these destinations; at least one.
    Route(Vec<HttpRouteDestination>),
    /// The client is sent elsewhere.
    Redirect(Redirect),
    /// The mesh answers.
    DirectResponse(DirectResponse),
    /// The routes of another virtual service decide. What that one does not say of `rewrite`, `timeout` and
    /// the like is as here.
    Delegate(Delegate),
}

/// A virtual service without hosts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delegate {
    /// Its name.
    pub name: String,
    /// Its namespace; that of the virtual service that delegates if none was written.
    pub namespace: String,
}

const FIELDS: [&str; 17] = [
    "name",
    "match",
    "route",
    "redirect",
    "directResponse",
    "delegate",
    "rewrite",
    "timeout",
    "retries",
    "fault",
    "mirror",
    "mirrors",
    "mirrorPercentage",
    "mirrorPercent",
    "mirror_percent",
    "corsPolicy",
    "headers",
];

/// Reads `http`.
pub(super) fn read_list(fields: &Fields<'_>, context: &Context<'_>) -> Vec<HttpRoute> {
    let routes = values::list(fields, "http", |at| Some((at.clone(), HttpRoute::read(at, context)?)));
    let mut earlier = EarlierRoutes::new("http");
    for (at, route) in &routes {
        // Whatever the other virtual service has no route for comes to the next one.
        let takes_all = !matches!(route.action, RouteAction::Delegate(_));
        earlier.add(at, route.matches.iter().map(HttpMatch::conditions), takes_all);
    }
    routes.into_iter().map(|(_, route)| route).collect()
}

impl HttpRoute {
    fn read(at: &Cursor<'_>, context: &Context<'_>) -> Option<Self> {
        let fields = at.fields(&FIELDS);
        let matches = values::list(&fields, "match", |at| Some(HttpMatch::read(at, context)));
        let action = action(at, &fields, context);
        check(&fields, action.as_ref());
        let rewrite = fields.get("rewrite").map(|at| Rewrite::read(&at));
        let headers = Headers::read(&fields);
        let is_set_twice =
            headers.request.authority.is_some() && rewrite.as_ref().is_some_and(|it| it.authority.is_some());
        if let Some(at) = fields.get("headers").filter(|_| is_set_twice) {
            at.error("the authority is already set by `rewrite`", "set it in one place");
        }
        Some(Self {
            name: values::name(&fields, "name"),
            matches,
            rewrite,
            timeout: values::duration(&fields, "timeout"),
            retries: fields.get("retries").map(|at| Retries::read(&at)),
            fault: fields.get("fault").map(|at| Fault::read(&at)),
            mirrors: Mirror::read_all(&fields),
            cors_policy: fields.get("corsPolicy").map(|at| CorsPolicy::read(&at)),
            headers,
            action: action?,
        })
    }
}

fn action(at: &Cursor<'_>, fields: &Fields<'_>, context: &Context<'_>) -> Option<RouteAction> {
    const ACTIONS: [&str; 4] = ["route", "redirect", "directResponse", "delegate"];
    let filled = |key: &str| fields.get(key).filter(|at| !at.is_empty_list());
    let given: Vec<_> = ACTIONS.into_iter().filter_map(|key| Some((key, filled(key)?))).collect();
    match given.as_slice() {
        [] => {
            let fix = "add `route`, `redirect`, `directResponse` or `delegate`";
            at.error("it does not say what becomes of requests", fix);
            None
        }
        [("route", at)] => Some(RouteAction::Route(HttpRouteDestination::read_list(at))),
        [("redirect", at)] => Redirect::read(at).map(RouteAction::Redirect),
        [("directResponse", at)] => DirectResponse::read(at).map(RouteAction::DirectResponse),
        [(_, at)] => Delegate::read(at, context).map(RouteAction::Delegate),
        [(first, _), (second, at), ..] => {
            at.error(format!("`{first}` and `{second}` exclude each other"), "remove one of them");
            None
        }
    }
}

/// Looks for what means nothing where requests go to no destination.
fn check(fields: &Fields<'_>, action: Option<&RouteAction>) {
    let answer = match action {
        Some(RouteAction::Redirect(_)) => "redirect",
        Some(RouteAction::DirectResponse(_)) => "directResponse",
        _ => return,
    };
    for key in ["rewrite", "fault"] {
        if let Some(at) = fields.get(key) {
            at.error(format!("`{key}` and `{answer}` exclude each other"), "remove one of them");
        }
    }
    for at in ["mirror", "mirrors"].into_iter().filter_map(|key| fields.get(key)) {
        at.warn(format!("nothing is mirrored of what `{answer}` answers"), "remove it");
    }
}

impl Delegate {
    fn read(at: &Cursor<'_>, context: &Context<'_>) -> Option<Self> {
        if context.is_delegate {
            let fix = "write the route here, or `hosts` if nobody is to delegate to this one";
            at.error("what others delegate to, having no `hosts`, can't delegate further", fix);
        }
        let fields = at.fields(&["name", "namespace"]);
        let given = values::given(&fields, "namespace");
        let namespace = given.map_or(Some(context.namespace), |at| namespace(&at));
        let name = fields.require("name")?.non_empty_string()?.to_owned();
        Some(Self { name, namespace: namespace?.to_owned() })
    }
}

fn namespace<'a>(at: &Cursor<'a>) -> Option<&'a str> {
    let name = at.text()?;
    if !is_label(name) {
        at.error("it is not a namespace", "write the name of a namespace, or remove it for its own");
        return None;
    }
    Some(name)
}
