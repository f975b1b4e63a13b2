// An HTTP/2 client and server in the clear, of Go's standard library.
//
//	http2 serve PORT NAME            answers with its name, and counts in a trailer what it got
//	http2 ask URL COUNT AT_ONCE [NAME=VALUE]
//	                                 sends requests with a body of 100 kB, on one connection, and tells who
//	                                 answered how often
package main

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
)

func protocols() *http.Protocols {
	var only http.Protocols
	only.SetUnencryptedHTTP2(true)
	return &only
}

func serve(port, name string) error {
	handler := func(out http.ResponseWriter, request *http.Request) {
		length, err := io.Copy(io.Discard, request.Body)
		out.Header().Set("Trailer", "X-Length")
		out.Header().Set("X-Server", name)
		out.Header().Set("X-Protocol", request.Proto)
		if err != nil {
			out.WriteHeader(http.StatusBadRequest)
		}
		fmt.Fprintln(out, name)
		out.Header().Set("X-Length", strconv.FormatInt(length, 10))
	}
	server := http.Server{Addr: ":" + port, Handler: http.HandlerFunc(handler), Protocols: protocols()}
	return server.ListenAndServe()
}

func askOnce(client *http.Client, url string, field string, body []byte) string {
	request, err := http.NewRequest("POST", url, bytes.NewReader(body))
	if err != nil {
		return err.Error()
	}
	if name, value, found := strings.Cut(field, "="); found {
		request.Header.Set(name, value)
	}
	response, err := client.Do(request)
	if err != nil {
		return err.Error()
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return err.Error()
	}
	if response.StatusCode != 200 {
		return response.Status
	}
	if response.ProtoMajor != 2 || response.Trailer.Get("X-Length") != strconv.Itoa(len(body)) {
		return fmt.Sprint("cut short: ", response.Proto, response.Trailer)
	}
	return strings.TrimSpace(string(text))
}

func ask(url string, count, atOnce int, field string) {
	client := &http.Client{Transport: &http.Transport{Protocols: protocols(), MaxConnsPerHost: 1}}
	body := bytes.Repeat([]byte("x"), 100_000)
	var lock sync.Mutex
	counts := map[string]int{}
	var waiting sync.WaitGroup
	work := make(chan struct{})
	for range atOnce {
		waiting.Go(func() {
			for range work {
				who := askOnce(client, url, field, body)
				lock.Lock()
				counts[who]++
				lock.Unlock()
			}
		})
	}
	for range count {
		work <- struct{}{}
	}
	close(work)
	waiting.Wait()
	for who, count := range counts {
		fmt.Printf("%d %s\n", count, who)
	}
}

func main() {
	switch os.Args[1] {
	case "serve":
		fmt.Fprintln(os.Stderr, serve(os.Args[2], os.Args[3]))
		os.Exit(1)
	case "ask":
		count, _ := strconv.Atoi(os.Args[3])
		atOnce, _ := strconv.Atoi(os.Args[4])
		ask(os.Args[2], count, atOnce, strings.Join(os.Args[5:], ""))
	}
}
