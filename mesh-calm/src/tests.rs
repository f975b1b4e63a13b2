//! Hostile and honest peers against the real library.

use std::future::poll_fn;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::*;
use crate::head::PREFACE;

const ROOM: usize = 64 * 1024;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// `CONNECT a:1`, without indexing (RFC 7541, section 6.2.2).
fn connect(stream: u32) -> Vec<u8> {
    frame(1, 4, stream, b"\x00\x07:method\x07CONNECT\x00\x0a:authority\x03a:1")
}

/// Answers every request with 200 and echoes; returns how the connection ended.
async fn serve(guarded: Guarded<DuplexStream>) -> Result<(), h2::Error> {
    let mut connection =
        h2::server::Builder::new().max_concurrent_streams(64).handshake::<_, Bytes>(guarded).await?;
    while let Some(accepted) = connection.accept().await {
        let (request, mut respond) = accepted?;
        tokio::spawn(async move {
            let mut body = request.into_body();
            let mut send = respond.send_response(http::Response::new(()), false)?;
            while let Some(piece) = body.data().await {
                let piece = piece?;
                body.flow_control().release_capacity(piece.len())?;
                send.send_data(piece, false)?;
            }
            send.send_data(Bytes::new(), true)
        });
    }
    Ok(())
}

/// Sends `flood(n)` over and over and reads all the while. Returns how many bytes were taken before the end,
/// and the code of the GOAWAY that was heard.
async fn attack(
    mut peer: DuplexStream,
    opening: Vec<u8>,
    flood: impl Fn(u32) -> Vec<u8>,
) -> (usize, Option<u32>) {
    let mut taken = 0;
    let (mut from, mut to) = tokio::io::split(&mut peer);
    let sending = async {
        to.write_all(&opening).await?;
        for n in 0..1_000_000 {
            let bytes = flood(n);
            to.write_all(&bytes).await?;
            taken += bytes.len();
        }
        Err::<(), _>(io::Error::other("not cut off"))
    };
    let reading = async {
        let mut heard = Vec::new();
        let _cut = from.read_to_end(&mut heard).await;
        heard
    };
    tokio::pin!(reading);
    let heard = tokio::select! {
        heard = &mut reading => heard,
        cut = sending => {
            assert!(!cut.unwrap_err().to_string().contains("not cut off"));
            reading.await
        }
    };
    (taken, goaway(&heard))
}

fn goaway(heard: &[u8]) -> Option<u32> {
    let mut heard = heard.strip_prefix(PREFACE).unwrap_or(heard);
    let mut code = None;
    while heard.len() >= 9 {
        let length = u32::from_be_bytes([0, heard[0], heard[1], heard[2]]) as usize;
        if heard[3] == 7 {
            code = heard.get(13..17).map(|code| u32::from_be_bytes(code.try_into().unwrap()));
        }
        heard = &heard[(9 + length).min(heard.len())..];
    }
    code
}

/// What it is, what comes before it, and its frames by their number.
type Flood = (&'static str, Vec<u8>, fn(u32) -> Vec<u8>);

#[tokio::test]
async fn floods_without_data_end_in_enhance_your_calm() {
    let settings = || frame(4, 0, 0, &[]);
    let floods: [Flood; 12] = [
        ("PRIORITY", settings(), |n| frame(2, 0, 2 * n + 1, &[0, 0, 0, 0, 1])),
        ("WINDOW_UPDATE", settings(), |_| frame(8, 0, 0, &[0, 0, 0, 1])),
        ("PING", settings(), |_| frame(6, 0, 0, b"12345678")),
        ("answers to PING", settings(), |_| frame(6, 1, 0, b"12345678")),
        ("SETTINGS", vec![], |_| frame(4, 0, 0, &[])),
        ("windows by SETTINGS", vec![], |n| frame(4, 0, 0, &[0, 4, 0, 1, 0, n.to_le_bytes()[0]])),
        ("unknown", settings(), |_| frame(99, 0, 0, &[])),
        ("large unknown", settings(), |_| frame(99, 0, 0, &[7; 16384])),
        ("padding", [settings(), connect(1)].concat(), |_| frame(0, 8, 1, &[3, 0, 0, 0])),
        ("WINDOW_UPDATE of a stream", [settings(), connect(1)].concat(), |_| frame(8, 0, 1, &[0, 0, 0, 1])),
        ("rapid reset", settings(), |n| [connect(2 * n + 1), frame(3, 0, 2 * n + 1, &[0, 0, 0, 8])].concat()),
        ("one byte for each WINDOW_UPDATE", [settings(), connect(1)].concat(), |_| {
            frame(8, 0, 0, &[0, 0, 0, 1]).repeat(20)
        }),
    ];
    for (what, opening, flood) in floods {
        let (ours, theirs) = duplex(ROOM);
        let served = tokio::spawn(serve(Guarded::new(ours, Role::Server)));
        let begun = std::time::Instant::now();
        let (taken, code) = attack(theirs, [PREFACE, &opening].concat(), flood).await;
        assert_eq!(code, Some(0xb), "{what}");
        assert!(taken < 1_200_000, "{what}: {taken} bytes were taken");
        assert!(begun.elapsed() < Duration::from_secs(5), "{what}");
        let ended = served.await.unwrap();
        assert!(ended.is_err() || what.contains("reset"), "{what}");
    }
}

/// Those that the library itself counts; it may say so in its own way.
#[tokio::test]
async fn empty_data_and_continuations_are_cut_off() {
    let floods: [(&str, Vec<u8>, Vec<u8>); 2] = [
        ("empty DATA", connect(1), frame(0, 0, 1, &[])),
        ("CONTINUATION", frame(1, 0, 1, b"\x00\x07:method\x07CONNECT"), frame(9, 0, 1, &[])),
    ];
    for (what, opening, flood) in floods {
        let (ours, theirs) = duplex(ROOM);
        tokio::spawn(serve(Guarded::new(ours, Role::Server)));
        let opening = [PREFACE, &frame(4, 0, 0, &[]), &opening].concat();
        let (taken, code) = attack(theirs, opening, move |_| flood.clone()).await;
        assert_eq!(code, Some(0xb), "{what}");
        assert!(taken < 600_000, "{what}: {taken}");
    }
}

#[tokio::test]
async fn a_server_that_floods_its_client_is_cut_off() {
    let (ours, theirs) = duplex(ROOM);
    let client = tokio::spawn(async move {
        let (requests, connection) = h2::client::handshake(Guarded::new(ours, Role::Client)).await.unwrap();
        let ended = connection.await;
        drop(requests);
        ended
    });
    let (_, code) = attack(theirs, frame(4, 0, 0, &[]), |_| frame(8, 0, 0, &[0, 0, 0, 1])).await;
    assert_eq!(code, Some(0xb));
    let error = client.await.unwrap().unwrap_err();
    assert!(error.to_string().contains("ENHANCE_YOUR_CALM"), "{error}");
}

#[tokio::test]
async fn who_has_not_proved_anything_has_so_many_frames_and_bytes() {
    for (frames, bytes, proven) in [(10, 1 << 20, false), (300, 100, false), (10, 100, true)] {
        let (ours, mut theirs) = duplex(ROOM);
        let trial = Trial { frames, bytes, proven: Arc::new(AtomicBool::new(proven)) };
        let served = tokio::spawn(serve(Guarded::new(ours, Role::Server).on_trial(trial)));
        let opening = [PREFACE, &frame(4, 0, 0, &[]), &connect(1)].concat();
        theirs.write_all(&opening).await.unwrap();
        for _ in 0..9 {
            let _may_be_cut_off = theirs.write_all(&frame(0, 0, 1, b"a piece of what may be data")).await;
        }
        let _may_be_cut_off = theirs.shutdown().await;
        let mut heard = Vec::new();
        theirs.read_to_end(&mut heard).await.unwrap();
        assert_eq!(goaway(&heard) == Some(0xb), !proven);
        assert_eq!(served.await.unwrap().is_err(), !proven);
    }
}

/// A thousand messages on each of sixteen streams, each acknowledged with its own `WINDOW_UPDATE`s.
#[tokio::test]
async fn many_small_messages_are_no_flood() {
    let (ours, theirs) = duplex(ROOM);
    let served = tokio::spawn(serve(Guarded::new(ours, Role::Server)));
    let (requests, connection) = h2::client::handshake(Guarded::new(theirs, Role::Client)).await.unwrap();
    let connection = tokio::spawn(connection);
    let streams: Vec<_> = (0..16).map(|_| tokio::spawn(small_messages(requests.clone()))).collect();
    for stream in streams {
        stream.await.unwrap();
    }
    drop(requests);
    connection.await.unwrap().unwrap();
    served.await.unwrap().unwrap();
}

async fn small_messages(requests: h2::client::SendRequest<Bytes>) {
    let request = http::Request::builder().method("CONNECT").uri("a:1").body(()).unwrap();
    let (response, mut send) = requests.ready().await.unwrap().send_request(request, false).unwrap();
    let mut body = response.await.unwrap().into_body();
    for _ in 0..1000 {
        send.send_data(Bytes::from_static(b"ping"), false).unwrap();
        let heard = body.data().await.unwrap().unwrap();
        body.flow_control().release_capacity(heard.len()).unwrap();
    }
    send.send_data(Bytes::new(), true).unwrap();
    while let Some(piece) = body.data().await {
        piece.unwrap();
    }
}

/// A peer that gives credit back for each frame of data, for the stream and for the connection, and pings as
/// often.
#[tokio::test]
async fn credit_and_a_ping_for_every_frame_of_data_are_no_flood() {
    let mut guarded = Guarded::new(tokio::io::empty(), Role::Server);
    assert!(guarded.look(PREFACE).is_ok());
    let ours = frame(0, 0, 1, b"x");
    let theirs = [frame(8, 0, 1, &[0, 0, 0, 1]), frame(8, 0, 0, &[0, 0, 0, 1])].concat();
    for n in 0..100_000 {
        guarded.note_sent(&ours);
        guarded.turn = Turn::default();
        assert_eq!(guarded.look(&theirs), Ok(theirs.len()), "{n}");
    }
}

#[tokio::test]
async fn a_hundred_streams_before_our_settings_and_as_many_given_up_are_no_flood() {
    let (ours, mut theirs) = duplex(ROOM);
    let served = tokio::spawn(serve(Guarded::new(ours, Role::Server)));
    let mut opening = [PREFACE, &frame(4, 0, 0, &[])].concat();
    for n in 0..100 {
        opening.extend(connect(2 * n + 1));
    }
    theirs.write_all(&opening).await.unwrap();
    // The library refuses those beyond its limit, and goes on.
    let mut heard = vec![0; 4096];
    let _some = theirs.read(&mut heard).await.unwrap();
    for n in 0..100 {
        theirs.write_all(&frame(3, 0, 2 * n + 1, &[0, 0, 0, 8])).await.unwrap();
    }
    theirs.shutdown().await.unwrap();
    let mut heard = Vec::new();
    theirs.read_to_end(&mut heard).await.unwrap();
    assert_ne!(goaway(&heard), Some(0xb));
    served.await.unwrap().unwrap();
}

/// However much there is to read, the task gives way after a turn's work; and nothing is lost on the way.
#[tokio::test]
async fn a_turn_ends_and_nothing_is_lost() {
    let data = frame(0, 0, 1, b"x").repeat(5000);
    let sent = [PREFACE, &data].concat();
    let (ours, mut theirs) = duplex(1024 * 1024);
    theirs.write_all(&sent).await.unwrap();
    theirs.shutdown().await.unwrap();
    let mut guarded = Guarded::new(ours, Role::Server);
    let (mut received, mut turns, mut ended) = (Vec::new(), 0, false);
    while !ended {
        poll_fn(|context| {
            let before = received.len();
            let mut space = vec![0; 32 * 1024];
            loop {
                let mut buffer = ReadBuf::new(&mut space);
                match Pin::new(&mut guarded).poll_read(context, &mut buffer) {
                    Poll::Pending => break,
                    Poll::Ready(result) => result.unwrap(),
                }
                ended = buffer.filled().is_empty();
                received.extend_from_slice(buffer.filled());
                if ended {
                    break;
                }
            }
            assert!(received.len() - before <= 128 * 10 + PREFACE.len() + 10, "more than a turn's work");
            Poll::Ready(())
        })
        .await;
        turns += 1;
    }
    assert_eq!(received, sent);
    assert!(turns >= 5000 / 128, "{turns}");
}
