use std::fmt::Write as _;

use super::*;

fn parse(head: &str) -> Result<RequestHead, Malformed> {
    parse_bytes(head.replace('\n', "\r\n").as_bytes())
}

fn parse_bytes(head: &[u8]) -> Result<RequestHead, Malformed> {
    let mut parsed = RequestHead::default();
    parsed.parse(head).map(|()| parsed)
}

#[test]
fn a_request_is_taken_apart() {
    let head = parse(
        "POST /a/../b?x=%41 HTTP/1.1\nhOsT: Web:80\nX-One: 1\nConnection: x-two, upgrade\nX-Two: 2\nTE: trailers\n\
         Upgrade: websocket\nContent-Length: 12\n\n",
    )
    .unwrap();
    assert_eq!((head.method(), head.path(), head.query()), ("POST", "/b", Some("x=%41")));
    assert_eq!((head.authority(), head.body), ("Web:80", BodyFraming::Length(12)));
    assert_eq!(head.fields.iter().collect::<Vec<_>>(), [("X-One", &b"1"[..])]);
    assert_eq!((head.upgrade.as_deref(), head.takes_trailers, head.keeps_alive), (None, true, true));
    assert_eq!(head.header("host").as_deref(), Some("Web:80"));
}

#[test]
fn a_target_has_four_forms() {
    for (line, authority, path) in [
        ("GET /a HTTP/1.1", "web", "/a"),
        ("GET http://WEB/a HTTP/1.1", "WEB", "/a"),
        ("GET http://web HTTP/1.1", "web", "/"),
        ("OPTIONS * HTTP/1.1", "web", "*"),
    ] {
        let head = parse(&format!("{line}\nHost: web\n\n")).unwrap();
        assert_eq!((head.authority(), head.path()), (authority, path), "{line}");
    }
    let connect = parse("CONNECT web:443 HTTP/1.1\nHost: web:443\n\n").unwrap();
    assert_eq!((connect.authority(), connect.path()), ("web:443", ""));
}

#[test]
fn what_is_said_of_the_connection() {
    for (head, keeps) in [
        ("GET / HTTP/1.1\nHost: a\n\n", true),
        ("GET / HTTP/1.1\nHost: a\nConnection: close\n\n", false),
        ("GET / HTTP/1.0\n\n", false),
        ("GET / HTTP/1.0\nConnection: keep-alive\n\n", true),
        ("GET / HTTP/1.0\nConnection: keep-alive, close\n\n", false),
    ] {
        assert_eq!(parse(head).unwrap().keeps_alive, keeps, "{head:?}");
    }
    let h2c = parse(
        "GET / HTTP/1.1\nHost: a\nConnection: Upgrade, HTTP2-Settings\nUpgrade: h2c\nHTTP2-Settings: AA\n\n",
    );
    let h2c = h2c.unwrap();
    assert!(h2c.upgrade.is_none() && h2c.fields.is_empty(), "an upgrade to HTTP/2 is not taken");
}

#[test]
fn what_has_more_than_one_meaning_is_refused() {
    let with = |fields: &str| format!("POST / HTTP/1.1\nHost: a\n{fields}\n\n");
    let lines = |lines: &str| format!("{lines}\nHost: a\n\n");
    let cases = [
        (with("Content-Length: 1\nContent-Length: 1"), 400),
        (with("Content-Length: 1, 1"), 400),
        (with("Content-Length: +1"), 400),
        (with("Content-Length: 0x1"), 400),
        (with("Content-Length:"), 400),
        (with("Content-Length: 99999999999999999999"), 400),
        (with("Content-Length: 1\nTransfer-Encoding: chunked"), 400),
        (with("Transfer-Encoding: chunked\nContent-Length: 1"), 400),
        (with("Transfer-Encoding: chunked\nTransfer-Encoding: chunked"), 400),
        (with("Transfer-Encoding: chunked, chunked"), 501),
        (with("Transfer-Encoding: gzip, chunked"), 501),
        (with("Transfer-Encoding: identity"), 501),
        (with("Transfer-Encoding: xchunked"), 501),
        (with("Transfer-Encoding : chunked"), 400),
        (with("Transfer-Encoding:\u{b}chunked"), 400),
        (with(" Folded: first"), 400),
        (with("A: b\n c"), 400),
        (with("A\u{0}: b"), 400),
        (with("A: b\u{0}"), 400),
        (with("A: b\rc"), 400),
        (with("A b: c"), 400),
        (with(": b"), 400),
        (with("Host: b"), 400),
        (with("Host: a"), 400),
        (with("Expect: 200-ok"), 417),
        ("GET / HTTP/1.1\n\n".to_owned(), 400),
        ("GET / HTTP/1.1\nHost: a b\n\n".to_owned(), 400),
        ("GET / HTTP/1.1\nHost: u@a\n\n".to_owned(), 400),
        ("GET / HTTP/1.1\nHost: a/b\n\n".to_owned(), 400),
        ("GET / HTTP/1.1\nHost: a:b\n\n".to_owned(), 400),
        ("GET / HTTP/1.1\nHost: a:99999\n\n".to_owned(), 400),
        ("GET / HTTP/1.1\nHost: [::1\n\n".to_owned(), 400),
        ("GET / HTTP/1.1\nHost: a,b:1:2\n\n".to_owned(), 400),
        ("POST / HTTP/1.0\nTransfer-Encoding: chunked\n\n".to_owned(), 400),
        (lines("GET http://b/ HTTP/1.1"), 400),
        (lines("GET ftp://a/ HTTP/1.1"), 400),
        (lines("GET http:/a HTTP/1.1"), 400),
        (lines("GET http://u@a/ HTTP/1.1"), 400),
        (lines("GET http://a?x HTTP/1.1"), 400),
        (lines("GET * HTTP/1.1"), 400),
        (lines("GET a HTTP/1.1"), 400),
        (lines("GET /#a HTTP/1.1"), 400),
        (lines("GET /%0 HTTP/1.1"), 400),
        (lines("GET /%00 HTTP/1.1"), 400),
        (lines("GET /a b HTTP/1.1"), 400),
        (lines("GET  / HTTP/1.1"), 400),
        (lines("GET /\u{e9} HTTP/1.1"), 400),
        (lines("CONNECT / HTTP/1.1"), 400),
        (lines("CONNECT http://a HTTP/1.1"), 400),
        (lines("G(T / HTTP/1.1"), 400),
        (lines("GET / HTTP/2.0"), 505),
        (lines("GET / HTTP/1.2"), 505),
        (lines("GET / http/1.1"), 400),
        (lines("GET /"), 400),
        (lines(""), 400),
    ];
    for (head, status) in cases {
        let refused = parse(&head).map(|parsed| format!("{parsed:?}"));
        match refused {
            Err(refused) => {
                let found = refused.status().as_u16();
                assert!(found == status || status == 400 && found == 505, "{head:?}: {found}");
            }
            Ok(parsed) => panic!("{head:?}: {parsed}"),
        }
    }
    let mut names = String::new();
    for name in 0..40 {
        let _ = write!(names, "x{name},");
    }
    for (head, status) in [
        (lines(&format!("GET /{} HTTP/1.1", "a".repeat(9000))), 414),
        (with(&format!("Connection: {names}")), 400),
        ("CONNECT a:1 HTTP/1.1\nHost: a:1\nContent-Length: 1\n\n".to_owned(), 400),
    ] {
        assert_eq!(parse(&head).unwrap_err().status().as_u16(), status, "{head:.60?}");
    }
    let many = with(&"A: b\n".repeat(MAX_FIELDS)[..5 * MAX_FIELDS - 1]);
    assert_eq!(parse(&many).unwrap_err().status().as_u16(), 431);
}

#[test]
fn the_memory_of_a_head_is_used_again_and_nothing_else_of_it() {
    let mut head = RequestHead::default();
    head.parse(b"PUT /a?b HTTP/1.1\r\nHost: web\r\nX: 1\r\nTE: trailers\r\nContent-Length: 1\r\n\r\n")
        .unwrap();
    head.parse(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    assert_eq!((head.method(), head.authority(), head.path(), head.query()), ("GET", "", "/", None));
    assert!(head.fields.is_empty() && !head.takes_trailers && head.body == BodyFraming::None);
}

#[test]
fn another_protocol_is_taken_only_if_it_is_one_alone_and_no_body_comes_before_it() {
    let upgrade = |fields: &str| {
        let head = format!("GET / HTTP/1.1\nHost: a\nConnection: upgrade\n{fields}\n\n");
        parse(&head).unwrap().upgrade
    };
    assert_eq!(upgrade("Upgrade: websocket").as_deref(), Some("websocket"));
    for fields in [
        "Upgrade: h2c",
        "Upgrade: H2C",
        "Upgrade: websocket, h2c",
        "Upgrade: websocket\nUpgrade: other",
        "Upgrade: websocket\nContent-Length: 1",
        "X: 1",
    ] {
        assert_eq!(upgrade(fields), None, "{fields}");
    }
}

#[test]
fn a_large_head_leaves_no_memory_behind() {
    let mut head = RequestHead::default();
    let path = "a".repeat(5000);
    let text = format!("GET /{path} HTTP/1.1\r\nHost: a\r\nConnection: x-one, x-two\r\n\r\n");
    head.parse(text.as_bytes()).unwrap();
    head.release_memory();
    assert_eq!((head.path.capacity(), head.options.capacity()), (0, 0));
}
