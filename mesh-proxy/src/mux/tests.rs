//! Two ends of a connection over real sockets, each with a relay to an application; and peers that misbehave.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::spawn_local;

use super::frame::{
    ControlFrame, DecoderEvent, FrameDecoder, GoAwayReason, Refusal, ResetReason, data_header,
};
use super::open_frame::OpenFrame;
use super::{
    Connection, EARLY_CREDIT, EarlyData, IncomingStream, MAX_PEER_STREAMS, OpenError, PodReceiveBudget,
    ServerConnection,
};
use crate::fixture::{self, RelayUnderTest, run_as_worker, spawn_echo_server, tcp_pair, test_tls_configs};
use crate::relay::{self, ByteMeter, SocketSide, relay_mux, reset_on_drop};
use crate::tls;
use crate::worker::DrainSignal;

/// Serves the first connection of a new listener, with `handle` for its streams.
async fn serve<F: Future<Output = ()> + 'static>(
    drain: Rc<DrainSignal>,
    handle: impl Fn(IncomingStream) -> F + 'static,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (_, server) = test_tls_configs();
    spawn_local(async move {
        let (tcp, _) = listener.accept().await.unwrap();
        let tls = tls::server_handshake(tcp, server).await.unwrap();
        let _end = ServerConnection::new(tls, &budget())
            .serve(async move { drain.wait_for_drain().await }, handle, || {})
            .await;
    });
    address
}

/// Streams that are held and not answered.
type Held = Rc<RefCell<Vec<IncomingStream>>>;

/// Serves a connection whose streams are held.
async fn serve_and_hold() -> (SocketAddr, Held) {
    let held = Held::default();
    let hold = Rc::clone(&held);
    let server = serve(Rc::default(), move |incoming| {
        hold.borrow_mut().push(incoming);
        async {}
    });
    (server.await, held)
}

/// What a server does with a stream: the application at `address` gets it.
async fn deliver(incoming: IncomingStream, address: SocketAddr) {
    let socket = TcpStream::connect(address).await.unwrap();
    let mut stream = incoming.into_accepted_stream().unwrap();
    let _end = relay_mux(socket, &mut stream, SocketSide::Server, &ByteMeter::default()).await;
}

async fn connect(address: SocketAddr) -> Connection {
    let tcp = TcpStream::connect(address).await.unwrap();
    Connection::start(
        tls::client_handshake_unverified_name(tcp, test_tls_configs().0).await.unwrap(),
        &budget(),
        || {},
    )
}

/// A server in front of `application`, and a connection to it.
async fn pair(application: SocketAddr) -> Connection {
    connect(serve(Rc::default(), move |incoming| deliver(incoming, application)).await).await
}

/// Of a pod that nobody narrows.
fn budget() -> Rc<PodReceiveBudget> {
    PodReceiveBudget::new(usize::MAX / 2, None)
}

fn open() -> OpenFrame {
    OpenFrame::new("10.0.0.1:40000".parse().unwrap(), "10.0.0.2:80".parse().unwrap())
}

/// A client application's socket whose bytes go through `connection`.
async fn through(connection: &Connection) -> TcpStream {
    Mux::through(connection).await
}

struct Mux;

impl RelayUnderTest for Mux {
    type Connection = Connection;

    async fn pair(application: SocketAddr) -> Connection {
        pair(application).await
    }

    async fn carry(connection: Connection, socket: TcpStream, meter: ByteMeter) -> Result<(), relay::Error> {
        let mut stream =
            connection.open_stream(open(), EarlyData::Socket(&socket), &Cell::default()).await.unwrap();
        relay_mux(socket, &mut stream, SocketSide::Client, &meter).await
    }
}

#[test]
fn half_close_reaches_the_server_and_its_answer_the_client() {
    fixture::half_close_reaches_the_server_and_its_answer_the_client::<Mux>();
}

#[test]
fn many_megabytes_arrive_unchanged_both_ways_beside_small_ones() {
    fixture::many_megabytes_arrive_unchanged_both_ways_beside_small_ones::<Mux>();
}

#[test]
fn a_reset_of_either_application_reaches_the_other() {
    fixture::a_reset_of_either_application_reaches_the_other::<Mux>();
}

#[test]
fn a_reader_that_stops_holds_up_its_writer_and_nobody_else() {
    fixture::a_reader_that_stops_holds_up_its_writer_and_nobody_else::<Mux>();
}

#[test]
fn refusals_are_told_apart_and_leave_the_first_bytes_where_they_are() {
    run_as_worker(async {
        for (refusal, denied) in [(Refusal::Denied, true), (Refusal::Unavailable, false)] {
            let server = serve(Rc::default(), move |incoming| async move { incoming.refuse(refusal) }).await;
            let (mut application, mut accepted) = tcp_pair().await;
            application.write_all(b"first").await.unwrap();
            accepted.readable().await.unwrap();
            match connect(server)
                .await
                .open_stream(open(), EarlyData::Socket(&accepted), &Cell::default())
                .await
                .map(drop)
                .unwrap_err()
            {
                OpenError::Denied => assert!(denied),
                OpenError::Unavailable => assert!(!denied),
                other => panic!("{other}"),
            }
            let mut first = [0; 5];
            accepted.read_exact(&mut first).await.unwrap();
            assert_eq!(&first, b"first");
        }
    });
}

/// Longer than what may go along with OPEN, and there before it.
#[test]
fn bytes_that_were_there_before_the_stream_arrive_once() {
    run_as_worker(async {
        let text: Vec<u8> =
            (0..EARLY_CREDIT * 3).map(|index| b'a' + u8::try_from(index % 23).unwrap()).collect();
        let connection = pair(spawn_echo_server().await).await;
        let (mut application, accepted) = tcp_pair().await;
        application.write_all(&text).await.unwrap();
        accepted.readable().await.unwrap();
        spawn_local(async move {
            let mut stream =
                connection.open_stream(open(), EarlyData::Socket(&accepted), &Cell::default()).await.unwrap();
            assert_eq!(stream.early, EARLY_CREDIT, "as much as may be went along");
            let _end = relay_mux(accepted, &mut stream, SocketSide::Client, &ByteMeter::default()).await;
        });
        application.shutdown().await.unwrap();
        let mut back = Vec::new();
        application.read_to_end(&mut back).await.unwrap();
        assert!(back.strip_suffix(b"<done>") == Some(&text), "{} bytes came back", back.len());
    });
}

#[test]
fn a_node_that_drains_finishes_what_is_open_and_takes_nothing_new() {
    run_as_worker(async {
        let (drain, application) = (Rc::<DrainSignal>::default(), spawn_echo_server().await);
        let server = serve(Rc::clone(&drain), move |incoming| deliver(incoming, application)).await;
        let connection = connect(server).await;
        let mut open_before = through(&connection).await;
        open_before.write_all(b"x").await.unwrap();
        open_before.read_u8().await.unwrap();
        drain.begin_drain();
        while connection.has_room() {
            tokio::task::yield_now().await;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let (_application, accepted) = tcp_pair().await;
        let refused = connection
            .open_stream(open(), EarlyData::Socket(&accepted), &Cell::default())
            .await
            .map(drop)
            .unwrap_err();
        assert!(matches!(refused, OpenError::Connection(_)), "{refused}");
        open_before.write_all(b"y").await.unwrap();
        assert_eq!(open_before.read_u8().await.unwrap(), b'y', "open streams go on");
        open_before.shutdown().await.unwrap();
        let mut rest = String::new();
        open_before.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "<done>");
    });
}

#[test]
fn what_a_client_gave_up_reaches_no_application() {
    run_as_worker(async {
        let (server, held) = serve_and_hold().await;
        let connection = connect(server).await;
        let (mut application, accepted) = tcp_pair().await;
        application.write_all(b"POST").await.unwrap();
        accepted.readable().await.unwrap();
        let exposed = Cell::default();
        let opening = connection.open_stream(open(), EarlyData::Socket(&accepted), &exposed);
        let given_up = tokio::time::timeout(Duration::from_millis(100), opening).await;
        assert!(given_up.is_err(), "nobody answers");
        assert!(exposed.get(), "it may have arrived");
        assert!(!connection.has_room(), "nothing was heard: the next one takes another connection");
        std::future::poll_fn(|context| match held.borrow()[0].stream.poll_stream_error(context) {
            Some(_) => std::task::Poll::Ready(()),
            None => std::task::Poll::Pending,
        })
        .await;
        let first = held.borrow_mut().remove(0);
        assert!(first.into_accepted_stream().is_err(), "it was reset before it was accepted");
    });
}

#[test]
fn what_may_have_arrived_is_told() {
    run_as_worker(async {
        let (mut application, accepted) = tcp_pair().await;
        application.write_all(b"POST").await.unwrap();
        accepted.readable().await.unwrap();
        let refuse = |incoming: IncomingStream| async { incoming.refuse(Refusal::GoingAway) };
        let exposed = Cell::default();
        let refused = connect(serve(Rc::default(), refuse).await).await;
        assert!(refused.open_stream(open(), EarlyData::Socket(&accepted), &exposed).await.is_err());
        assert!(!exposed.get(), "refused: another endpoint may have it");
        let (server, held) = serve_and_hold().await;
        let tcp = TcpStream::connect(server).await.unwrap();
        let socket = socket2::SockRef::from(&tcp).try_clone().unwrap();
        let lost = Connection::start(
            tls::client_handshake_unverified_name(tcp, test_tls_configs().0).await.unwrap(),
            &budget(),
            || {},
        );
        let (result, ()) =
            tokio::join!(lost.open_stream(open(), EarlyData::Socket(&accepted), &exposed), async {
                while held.borrow().is_empty() {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                assert!(exposed.get(), "nobody knows yet");
                socket.shutdown(std::net::Shutdown::Both).unwrap();
            });
        assert!(matches!(result.map(drop).unwrap_err(), OpenError::Connection(_)));
        assert!(!exposed.get(), "the other end is gone, and had not answered");
    });
}

#[test]
fn an_application_gets_nothing_before_the_answer_is_sent() {
    run_as_worker(async {
        let (server, held) = serve_and_hold().await;
        let connection = connect(server).await;
        let mut client = through(&connection).await;
        client.write_all(b"POST").await.unwrap();
        while held.borrow().is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let (mut application, delivering) = tcp_pair().await;
        let mut stream = held.borrow_mut().remove(0).into_accepted_stream().unwrap();
        assert!(!stream.state.announced.get(), "the connection's task has not run since");
        spawn_local(async move {
            let _end = relay_mux(delivering, &mut stream, SocketSide::Server, &ByteMeter::default()).await;
        });
        let mut got = [0; 4];
        application.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"POST");
    });
}

#[test]
fn the_tail_of_a_stream_outlives_its_connection() {
    const TAIL: usize = 60 * 1024;
    run_as_worker(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let drain = Rc::<DrainSignal>::default();
        let server = serve(Rc::clone(&drain), move |incoming| deliver(incoming, address)).await;
        let connection = connect(server).await;
        let (mut application, accepted) = tcp_pair().await;
        for socket in [&application, &accepted] {
            let socket = socket2::SockRef::from(socket);
            socket.set_recv_buffer_size(4096).unwrap();
            socket.set_send_buffer_size(4096).unwrap();
        }
        let opened = connection.clone();
        spawn_local(async move {
            let mut stream =
                opened.open_stream(open(), EarlyData::Socket(&accepted), &Cell::default()).await.unwrap();
            let _end = relay_mux(accepted, &mut stream, SocketSide::Client, &ByteMeter::default()).await;
        });
        application.shutdown().await.unwrap();
        let (mut answering, _) = listener.accept().await.unwrap();
        answering.write_all(&vec![7; TAIL]).await.unwrap();
        drop(answering);
        drain.begin_drain();
        while connection.has_room() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let mut all = Vec::new();
        application.read_to_end(&mut all).await.unwrap();
        assert_eq!(all.len(), TAIL, "nothing is missing, and it is no reset");
    });
}

#[test]
fn an_application_that_breaks_while_nobody_reads_it_is_noticed() {
    run_as_worker(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let connection = pair(listener.local_addr().unwrap()).await;
        let mut writer = through(&connection).await;
        writer.write_all(b"x").await.unwrap();
        let (stopped, _) = listener.accept().await.unwrap();
        let chunk = vec![0; 1 << 20];
        while let Ok(Ok(_)) = tokio::time::timeout(Duration::from_millis(300), writer.write(&chunk)).await {}
        reset_on_drop(&writer);
        drop(writer);
        while connection.stream_count() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        drop(stopped);
    });
}

/// Sends `bytes` as a peer that makes up its own frames, and answers with the frames that come back.
async fn say(bytes: Vec<u8>, server: SocketAddr) -> Vec<ControlFrame> {
    let tcp = TcpStream::connect(server).await.unwrap();
    let mut tls = tls::client_handshake_unverified_name(tcp, test_tls_configs().0).await.unwrap();
    let (mut decoder, mut frames, mut at) = (FrameDecoder::default(), Vec::new(), 0);
    let mut buffer = vec![0; 64 * 1024];
    let mut silence = None;
    loop {
        let step = std::future::poll_fn(|context| {
            if at < bytes.len() && tls.poll_send_all(context).is_ready() {
                let to = (at + 64 * 1024).min(bytes.len());
                tls.encrypt_and_queue(&bytes[at..to]).unwrap();
                at = to;
                context.waker().wake_by_ref();
            }
            let _later = tls.poll_send_all(context);
            let mut room = tokio::io::ReadBuf::new(&mut buffer);
            std::task::ready!(tokio::io::AsyncRead::poll_read(
                std::pin::Pin::new(&mut tls),
                context,
                &mut room
            ))?;
            std::task::Poll::Ready(Ok::<_, std::io::Error>(room.filled().len()))
        });
        let wait = silence.unwrap_or(Duration::from_secs(20));
        let Ok(Ok(read @ 1..)) = tokio::time::timeout(wait, step).await else { return frames };
        let mut piece = &buffer[..read];
        while let Some(event) = decoder.next_event(&mut piece).unwrap() {
            if let DecoderEvent::Frame(frame) = event {
                frames.push(frame);
            }
        }
        silence = Some(Duration::from_millis(300));
    }
}

fn bytes(frames: &[ControlFrame]) -> Vec<u8> {
    let mut bytes = Vec::new();
    frames.iter().for_each(|frame| frame.encode(&mut bytes));
    bytes
}

fn opened(id: u32) -> ControlFrame {
    ControlFrame::Open(id, OpenFrame { credit: 1000, ..open() })
}

#[test]
fn who_breaks_the_protocol_is_told_why_and_cut_off() {
    let data = |id: u32, size: usize| [&data_header(id, size)[..], &vec![0; size]].concat();
    let open_and = |more: Vec<u8>| [bytes(&[opened(1)]), more].concat();
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("no frame", vec![0x55; 100], "unknown kind"),
        ("another protocol", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), "unknown kind"),
        ("data without a stream", data(1, 1), "not its to use"),
        ("the same stream twice", bytes(&[opened(2), opened(2)]), "not its to use"),
        ("a stream before the last one", bytes(&[opened(2), opened(1)]), "not its to use"),
        ("an answer of a client", bytes(&[opened(1), ControlFrame::Accept(1, 5)]), "waits for none"),
        ("no credit", bytes(&[opened(1), ControlFrame::Credit(1, 0)]), "out of range"),
        ("too much credit", bytes(&[opened(1), ControlFrame::Credit(1, u32::MAX)]), "out of range"),
        ("END twice", bytes(&[opened(1), ControlFrame::End(1), ControlFrame::End(1)]), "after END"),
        ("data after END", open_and([bytes(&[ControlFrame::End(1)]), data(1, 1)].concat()), "after END"),
        ("early data beyond the limit", open_and([data(1, EARLY_CREDIT), data(1, 1)].concat()), "credit"),
        ("a source that is none", open_and(vec![1, 0, 0, 4, 0, 0, 0, 3, 9, 9, 9, 9]), "malformed"),
    ];
    run_as_worker(async move {
        for (what, said, expected) in cases {
            let (server, _held) = serve_and_hold().await;
            let frames = say(said, server).await;
            match frames.last() {
                Some(ControlFrame::GoAway(GoAwayReason::Violation, why)) => {
                    assert!(why.contains(expected), "{what}: {why}");
                }
                other => panic!("{what}: {other:?}"),
            }
        }
    });
}

#[test]
fn floods_of_what_is_no_data_are_cut_off() {
    let many = |frames: &[ControlFrame]| bytes(frames).repeat(20_000 / frames.len());
    let pairs: Vec<_> =
        (1..2000).flat_map(|id| [opened(id), ControlFrame::Reset(id, ResetReason::Broken)]).collect();
    let credit = [bytes(&[opened(1)]), many(&[ControlFrame::Credit(1, 1)])].concat();
    let over = bytes(&[opened(1), ControlFrame::Reset(1, ResetReason::Broken)]);
    // The first ends a connection that has no stream.
    let goodbyes = many(&[ControlFrame::GoAway(GoAwayReason::Draining, "again".to_owned())]);
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("credit", credit),
        ("answers to no ping", many(&[ControlFrame::Pong(*b"12345678")])),
        ("pings", many(&[ControlFrame::Ping(*b"12345678")])),
        ("streams that are reset at once", bytes(&pairs)),
        ("resets of what is over", [over, many(&[ControlFrame::Reset(1, ResetReason::Broken)])].concat()),
        ("goodbyes", [bytes(&[opened(1)]), goodbyes].concat()),
        ("kinds that nobody knows", [200, 0, 0, 0, 0, 0, 0, 7].repeat(20_000)),
        (
            "much of a kind that nobody knows",
            [[200, 0, 64, 0, 0, 0, 0, 7].to_vec(), vec![7; 16384]].concat().repeat(200),
        ),
    ];
    run_as_worker(async move {
        for (what, said) in cases {
            let (server, _held) = serve_and_hold().await;
            let frames = say(said, server).await;
            assert!(
                matches!(frames.last(), Some(ControlFrame::GoAway(GoAwayReason::Flood, _))),
                "{what}: {:?}",
                frames.last()
            );
        }
    });
}

/// The peer can draw the goodbye out, and that is not to put off what follows from a flood.
#[test]
fn a_flood_is_told_of_before_the_goodbye() {
    run_as_worker(async {
        let (tcp, accepted) = tcp_pair().await;
        let (flooded, over) = (Rc::<Cell<bool>>::default(), Rc::<Cell<bool>>::default());
        let (told, ended) = (Rc::clone(&flooded), Rc::clone(&over));
        spawn_local(async move {
            let tls = tls::server_handshake(accepted, test_tls_configs().1).await.unwrap();
            let server = ServerConnection::new(tls, &budget());
            let served = server.serve(std::future::pending(), |_| async {}, || told.set(true)).await;
            assert_eq!(served.unwrap_err().kind(), mesh_calm::FLOOD);
            ended.set(true);
        });
        let mut tls = tls::client_handshake_unverified_name(tcp, test_tls_configs().0).await.unwrap();
        let of_no_kind = [200, 0, 0, 0, 0, 0, 0, 7].repeat(8_000);
        // Its socket stays open.
        tls.write_all(&of_no_kind).await.unwrap();
        std::future::poll_fn(|context| tls.poll_send_all(context)).await.unwrap();
        fixture::wait_until("it is told of", || flooded.get()).await;
        assert!(!over.get(), "the goodbye takes as long as the peer likes, up to a second");
        drop(tls);
    });
}

#[test]
fn data_for_streams_that_are_over_is_taken_as_far_as_they_had_credit() {
    run_as_worker(async {
        for (size, taken) in [(EARLY_CREDIT, true), (EARLY_CREDIT + 1, false)] {
            // Refused at once, and dropped.
            let server = serve(Rc::default(), |incoming| async { incoming.refuse(Refusal::Denied) }).await;
            let client = Rc::new(RefCell::new(
                tls::client_handshake_unverified_name(
                    TcpStream::connect(server).await.unwrap(),
                    test_tls_configs().0,
                )
                .await
                .unwrap(),
            ));
            let send = |bytes: Vec<u8>| {
                let client = Rc::clone(&client);
                async move {
                    client.borrow_mut().encrypt_and_queue(&bytes).unwrap();
                    std::future::poll_fn(|context| client.borrow_mut().poll_send_all(context)).await.unwrap();
                }
            };
            let hear = || async {
                let mut heard = vec![0; 4096];
                let read = std::future::poll_fn(|context| {
                    let mut room = tokio::io::ReadBuf::new(&mut heard);
                    let mut client = client.borrow_mut();
                    let polled =
                        tokio::io::AsyncRead::poll_read(std::pin::Pin::new(&mut *client), context, &mut room);
                    polled.map(|read| read.map(|()| room.filled().len()))
                });
                let read = read.await.unwrap();
                FrameDecoder::default().next_event(&mut &heard[..read]).unwrap().map(|event| match event {
                    DecoderEvent::Frame(frame) => frame,
                    DecoderEvent::Data { .. } => panic!("no data"),
                })
            };
            send(bytes(&[opened(1)])).await;
            assert_eq!(hear().await, Some(ControlFrame::Refuse(1, Refusal::Denied)));
            send([&data_header(1, size)[..], &vec![0; size]].concat()).await;
            send(bytes(&[ControlFrame::Ping(*b"12345678")])).await;
            let answer = hear().await.unwrap();
            assert_eq!(answer == ControlFrame::Pong(*b"12345678"), taken, "{answer:?}");
            assert_eq!(
                matches!(answer, ControlFrame::GoAway(GoAwayReason::Violation, _)),
                !taken,
                "{answer:?}"
            );
        }
    });
}

#[test]
fn more_data_than_an_application_takes_is_cut_off_at_the_window() {
    run_as_worker(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let application = listener.local_addr().unwrap();
        let server = serve(Rc::default(), move |incoming| deliver(incoming, application)).await;
        // The kernel takes a part of it, and an application that reads nothing the rest of the window.
        let size = 256 * 1024;
        let much = [&data_header(1, size)[..], &vec![0; size]].concat().repeat(64 * (1 << 20) / size);
        let mut said = bytes(&[opened(1)]);
        said.extend_from_slice(&data_header(1, EARLY_CREDIT));
        said.extend_from_slice(&[0; EARLY_CREDIT]);
        said.extend_from_slice(&much);
        let frames = say(said, server).await;
        let last = frames.last();
        assert!(
            matches!(last, Some(ControlFrame::GoAway(GoAwayReason::Violation, why)) if why.contains("credit")),
            "{last:?}"
        );
    });
}

#[test]
fn streams_beyond_the_limit_are_refused() {
    run_as_worker(async {
        let (server, _held) = serve_and_hold().await;
        let count = u32::try_from(MAX_PEER_STREAMS).unwrap();
        let opens: Vec<_> = (1..=count + 2).map(opened).collect();
        let frames = say(bytes(&opens), server).await;
        let refused = |id| ControlFrame::Refuse(id, Refusal::Busy);
        assert_eq!(frames, [refused(count + 1), refused(count + 2)]);
    });
}

#[test]
fn pings_are_answered_and_a_peer_that_reads_none_is_cut_off() {
    run_as_worker(async {
        let server = serve(Rc::default(), |_| async {}).await;
        assert_eq!(
            say(bytes(&[ControlFrame::Ping(*b"12345678")]), server).await,
            [ControlFrame::Pong(*b"12345678")]
        );
        let server = serve(Rc::default(), |_| async {}).await;
        let tcp = TcpStream::connect(server).await.unwrap();
        let mut tls = tls::client_handshake_unverified_name(tcp, test_tls_configs().0).await.unwrap();
        let pings = bytes(&vec![ControlFrame::Ping(*b"12345678"); 4096]);
        // Neither end would ever stop otherwise.
        for _ in 0..10_000 {
            tls.encrypt_and_queue(&pings).unwrap();
            if std::future::poll_fn(|context| tls.poll_send_all(context)).await.is_err() {
                return;
            }
        }
        panic!("gigabytes of pings were taken");
    });
}

#[test]
fn a_connection_whose_time_is_over_ends_in_order() {
    fixture::a_connection_whose_time_is_over_ends_in_order::<Mux>();
}

#[test]
fn a_server_that_sends_beyond_the_max_duration_is_reset() {
    fixture::a_server_that_sends_beyond_the_max_duration_is_reset::<Mux>();
}
