package main

import (
	"flag"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
)

// ports is a flag that may be given several times.
type ports []int

func (p *ports) String() string { return fmt.Sprint(*p) }

func (p *ports) Set(text string) error {
	port, err := strconv.Atoi(text)
	*p = append(*p, port)
	return err
}

// What listens where nothing else is said: a pod of the suite starts the program without arguments.
var (
	defaultHTTP = ports{8080}
	defaultGRPC = ports{7070}
	defaultTCP  = ports{9090}
)

// listens says what is spoken at which port. A port of `secure` is one of `web`, too.
type listens struct {
	web, secure, grpc, tcp ports
}

func parseListens(arguments []string) (listens, error) {
	var l listens
	flags := flag.NewFlagSet("echo", flag.ContinueOnError)
	flags.Var(&l.web, "port", "port of HTTP/1.1 and HTTP/2 with prior knowledge")
	flags.Var(&l.secure, "tls", "a port of --port that speaks them over TLS")
	flags.Var(&l.grpc, "grpc", "port of gRPC")
	flags.Var(&l.tcp, "tcp", "port that sends back what it gets")
	// The suite names files for the certificate. Nobody checks it, so each server makes its own.
	flags.String("crt", "", "not used")
	flags.String("key", "", "not used")
	err := flags.Parse(arguments)
	if len(arguments) == 0 {
		l = listens{web: defaultHTTP, grpc: defaultGRPC, tcp: defaultTCP}
	}
	return l, err
}

// serve listens until a listener fails.
func serve(arguments []string) error {
	l, err := parseListens(arguments)
	if err != nil {
		return err
	}
	failed := make(chan error)
	start := func(port int, serve func(net.Listener) error) {
		listener, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
		if err != nil {
			go func() { failed <- err }()
			return
		}
		go func() { failed <- serve(listener) }()
	}
	for _, port := range l.web {
		if slices.Contains(l.secure, port) {
			start(port, serveTLS)
		} else {
			start(port, webServer(http.HandlerFunc(answer)).Serve)
		}
	}
	for _, port := range l.grpc {
		start(port, webServer(http.HandlerFunc(answerCall)).Serve)
	}
	for _, port := range l.tcp {
		start(port, serveTCP)
	}
	return <-failed
}

// webServer speaks HTTP/1.1, HTTP/2 with prior knowledge, and both where TLS is around it.
func webServer(handler http.Handler) *http.Server {
	return &http.Server{Handler: handler, Protocols: bothVersions()}
}

func bothVersions() *http.Protocols {
	var versions http.Protocols
	versions.SetHTTP1(true)
	versions.SetHTTP2(true)
	versions.SetUnencryptedHTTP2(true)
	return &versions
}

func serveTLS(listener net.Listener) error {
	config, err := selfSigned()
	if err != nil {
		return err
	}
	server := webServer(http.HandlerFunc(answer))
	server.TLSConfig = config
	return server.ServeTLS(listener, "", "")
}

func answer(w http.ResponseWriter, r *http.Request) {
	fmt.Fprint(w, description(r))
}

// description is a request as its server sees it.
func description(r *http.Request) string {
	hostname, _ := os.Hostname()
	var text strings.Builder
	say := func(key, value string) { fmt.Fprintf(&text, "%s=%s\n", key, value) }
	say("Host", r.Host)
	say("Hostname", hostname)
	say("Method", r.Method)
	say("Proto", r.Proto)
	say("URL", r.RequestURI)
	if local, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok {
		_, port, _ := net.SplitHostPort(local.String())
		say("ServicePort", port)
	}
	client, _, _ := net.SplitHostPort(r.RemoteAddr)
	say("IP", client)
	for _, line := range headerLines("RequestHeader", r.Header) {
		text.WriteString(line)
	}
	return text.String()
}

// headerLines has one line for each field, by name; those of one name in the order in which they came.
func headerLines(key string, header http.Header) []string {
	var lines []string
	for _, name := range slices.Sorted(maps.Keys(header)) {
		for _, value := range header[name] {
			lines = append(lines, fmt.Sprintf("%s=%s:%s\n", key, name, value))
		}
	}
	return lines
}

func serveTCP(listener net.Listener) error {
	for {
		connection, err := listener.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer connection.Close()
			io.Copy(connection, connection)
		}()
	}
}
