package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"
)

// An answer that takes longer is none.
const patience = 5 * time.Second

const usage = "usage: client URL [--method=GET] [-H Name:value]… [--count=N]"

// asked is what the command line says.
type asked struct {
	url    *url.URL
	method string
	header http.Header
	count  int
}

// parseAsked reads the command line. The suite writes options behind the URL, where package flag stops.
func parseAsked(arguments []string) (asked, error) {
	a := asked{method: http.MethodGet, header: http.Header{}, count: 1}
	for len(arguments) > 0 {
		word := arguments[0]
		arguments = arguments[1:]
		var err error
		switch name, value, _ := strings.Cut(word, "="); {
		case name == "--method":
			a.method = value
		case name == "--count":
			a.count, err = strconv.Atoi(value)
		case word == "-H" && len(arguments) > 0:
			name, value, _ := strings.Cut(arguments[0], ":")
			// As it was written: the suite tries names in both cases.
			a.header[name] = append(a.header[name], strings.TrimSpace(value))
			arguments = arguments[1:]
		case strings.HasPrefix(word, "-"):
			err = errors.New(usage)
		default:
			a.url, err = url.Parse(word)
		}
		if err != nil {
			return a, err
		}
	}
	if a.url == nil {
		return a, errors.New(usage)
	}
	return a, nil
}

// ask sends the requests one after the other and prints each answer; no answer is an error.
func ask(arguments []string) error {
	a, err := parseAsked(arguments)
	if err != nil {
		return err
	}
	once := func() (string, error) { return request(a) }
	if a.url.Scheme == "grpc" {
		// One connection for all calls, as clients of gRPC have it: the mesh has to balance what is in it.
		client := &http.Client{Transport: transport(false), Timeout: patience}
		once = func() (string, error) {
			text, header, err := call(client, a.url.Host, a.header)
			return answered("200", text, header), err
		}
	}
	for range a.count {
		text, err := once()
		if err != nil {
			return err
		}
		fmt.Fprintln(os.Stdout, text)
	}
	return nil
}

// request sends one on a connection of its own, and does not follow where the answer leads.
func request(a asked) (string, error) {
	request, err := http.NewRequest(a.method, a.url.String(), nil)
	if err != nil {
		return "", err
	}
	setHeaders(request, a.header)
	transport := transport(true)
	defer transport.CloseIdleConnections()
	client := &http.Client{
		Transport:     transport,
		Timeout:       patience,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	response, err := client.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if response.StatusCode != http.StatusOK {
		// Of somebody on the way, so it says nothing about a server.
		body = nil
	}
	return answered(strconv.Itoa(response.StatusCode), string(body), response.Header), err
}

// answered is an answer as the suite reads it; the first line of a key counts.
func answered(status, body string, header http.Header) string {
	return "StatusCode=" + status + "\n" + body + strings.Join(headerLines("ResponseHeader", header), "")
}

func setHeaders(request *http.Request, header http.Header) {
	for name, values := range header {
		if strings.EqualFold(name, "Host") {
			request.Host = values[0]
		} else {
			request.Header[name] = values
		}
	}
}

// transport speaks one version without TLS: HTTP/1.1, or HTTP/2 with prior knowledge.
func transport(first bool) *http.Transport {
	var versions http.Protocols
	versions.SetHTTP1(first)
	versions.SetUnencryptedHTTP2(!first)
	return &http.Transport{
		Protocols: &versions,
		// Nobody's certificate is checked: servers make their own.
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
	}
}
