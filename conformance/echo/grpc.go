package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
)

// Both ends of a call are ours, so a message is text without protobuf around it, and any method will do.
const (
	callType   = "application/grpc"
	callPath   = "/nodemesh.conformance.Echo/Call"
	frameHead  = 5
	largestMsg = 1 << 20
)

// frame is a message as gRPC sends it: not compressed, its length, its bytes.
func frame(message string) []byte {
	head := make([]byte, frameHead)
	binary.BigEndian.PutUint32(head[1:], uint32(len(message)))
	return append(head, message...)
}

// message reads the first frame of a body, and the body to its end, behind which are the trailers.
func message(body io.Reader) (string, error) {
	all, err := io.ReadAll(io.LimitReader(body, largestMsg))
	if err != nil {
		return "", err
	}
	if len(all) < frameHead || int(binary.BigEndian.Uint32(all[1:frameHead])) > len(all)-frameHead {
		return "", errors.New("the message is not whole")
	}
	return string(all[frameHead:][:binary.BigEndian.Uint32(all[1:frameHead])]), nil
}

// answerCall is the server of every method.
func answerCall(w http.ResponseWriter, r *http.Request) {
	if _, err := message(r.Body); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", callType)
	w.Header().Set(http.TrailerPrefix+"Grpc-Status", "0")
	w.Write(frame(lowerHeaders(description(r))))
}

// lowerHeaders writes the names of request headers as metadata, in lower case.
func lowerHeaders(text string) string {
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		if pair, ok := strings.CutPrefix(line, "RequestHeader="); ok {
			name, value, _ := strings.Cut(pair, ":")
			lines[i] = "RequestHeader=" + strings.ToLower(name) + ":" + value
		}
	}
	return strings.Join(lines, "\n")
}

// call makes one and returns the message and the metadata of the answer.
func call(client *http.Client, host string, header http.Header) (string, http.Header, error) {
	request, err := http.NewRequest(http.MethodPost, "http://"+host+callPath, bytes.NewReader(frame("")))
	if err != nil {
		return "", nil, err
	}
	setHeaders(request, header)
	request.Header.Set("Content-Type", callType)
	request.Header.Set("Te", "trailers")
	response, err := client.Do(request)
	if err != nil {
		return "", nil, err
	}
	defer response.Body.Close()
	text, err := message(response.Body)
	status := response.Trailer.Get("Grpc-Status")
	if status == "" {
		// An answer without a message has it among its headers.
		status = response.Header.Get("Grpc-Status")
	}
	if status != "0" {
		return "", nil, fmt.Errorf("the call ended with gRPC status %q, HTTP %s", status, response.Status)
	}
	return text, response.Header, err
}
