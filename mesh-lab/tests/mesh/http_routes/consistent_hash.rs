//! A `DestinationRule` with `consistentHash`, without any route: requests alike in what it names go to one
//! endpoint.

use std::collections::BTreeMap;

use super::{SERVICE, web_pod};
use crate::world::{SOON, World, eventually};

const SERVERS: [(&str, &str); 4] = [("a", "node1"), ("b", "node1"), ("c", "node2"), ("d", "node2")];

/// Asks for each of these users, each on a connection of its own; prints who answered whom, and the cookie
/// that was given.
const ASK: &str = "
import http.client, json, sys
for user in sys.argv[2:]:
    connection = http.client.HTTPConnection('web', 80, timeout=10)
    connection.request('GET', '/a?user=' + user, headers={sys.argv[1]: user})
    response = connection.getresponse()
    answer = response.read()
    server = json.loads(answer)['server'] if response.status == 200 else str(response.status)
    print(user, server, response.getheader('Set-Cookie', ''), sep='\\t')
    connection.close()
";

fn rule(key: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: web, namespace: app}}\nspec: {{host: web, trafficPolicy: {{loadBalancer: {{consistentHash: {{{key}}}}}}}}}\n"
    )
}

/// Who answered each user, and which cookie was given.
type Answers = BTreeMap<String, (String, String)>;

fn ask(world: &World, header: &str, users: &[String]) -> Answers {
    let mut program = vec!["python3", "-c", ASK, header];
    program.extend(users.iter().map(String::as_str));
    let ran = world.exec("app", "client", &program);
    let lines = ran.text.lines().filter_map(|line| {
        let mut parts = line.split('\t').map(str::to_owned);
        Some((parts.next()?, (parts.next()?, parts.next().unwrap_or_default())))
    });
    let answers: Answers = lines.collect();
    assert_eq!(answers.len(), users.len(), "{}", ran.text);
    answers
}

/// Whether every user gets the same server twice, and each server has some.
fn is_spread_and_kept(world: &World, header: &str, users: &[String]) -> bool {
    let (first, again) = (ask(world, header, users), ask(world, header, users));
    let used = |name: &str| first.values().any(|(server, _)| server == name);
    first == again && SERVERS.iter().all(|(name, _)| used(name))
}

#[test]
fn requests_alike_go_to_one_endpoint_and_no_others_move_when_one_goes() {
    let world = World::new("hashes");
    let pods: String = SERVERS.iter().map(|(name, node)| web_pod(name, node, 200)).collect();
    world.apply(&(SERVICE.to_owned() + &pods + &rule("httpHeaderName: x-user")));
    world.lab.wait_ready(SOON).unwrap();
    let users: Vec<_> = (0..60).map(|number| format!("user-{number}")).collect();
    eventually("users are spread by the header, and kept", || is_spread_and_kept(&world, "X-User", &users));
    let before = ask(&world, "X-User", &users);
    world.lab.delete(&web_pod("d", "node2", 200)).unwrap();
    eventually("one goes, and only its own users move", || {
        let after = ask(&world, "X-User", &users);
        let stays = |(user, answer): (&String, &(String, String))| answer.0 == "d" || after[user] == *answer;
        after.values().all(|(server, _)| ["a", "b", "c"].contains(&server.as_str()))
            && before.iter().all(stays)
    });
    world.apply(&web_pod("d", "node2", 200));
    world.lab.wait_ready(SOON).unwrap();
    eventually("it is back, and so are its users", || ask(&world, "X-User", &users) == before);

    world.apply(&rule("httpQueryParameterName: user"));
    eventually("a parameter of the query decides", || is_spread_and_kept(&world, "X-None", &users));
    assert_ne!(ask(&world, "X-None", &users)[&users[0]].0, "", "all are answered");

    world.apply(&rule("httpCookie: {name: session, path: /, ttl: 60s}"));
    let one = |cookie: &str| ask(&world, "Cookie", &[cookie.to_owned()]).remove(cookie).unwrap();
    let mut given = (String::new(), String::new());
    eventually("a cookie is given", || {
        given = one("other=1");
        !given.1.is_empty()
    });
    let (server, cookie) = given;
    assert!(cookie.ends_with("; Max-Age=60; Path=/; HttpOnly"), "{cookie}");
    let value = cookie.split(';').next().unwrap();
    for _ in 0..20 {
        assert_eq!(one(value), (server.clone(), String::new()), "who has it gets no other, and stays");
    }

    world.apply(&rule("useSourceIp: true"));
    eventually("all connections of a client go to one endpoint", || {
        let answers = ask(&world, "X-User", &users);
        let servers: std::collections::BTreeSet<_> = answers.values().map(|(server, _)| server).collect();
        servers.len() == 1
    });
}
