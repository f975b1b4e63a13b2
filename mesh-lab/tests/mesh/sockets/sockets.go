// What a Go program sees of its sockets: see connections() in sockets.rs.
package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"
)

func converse(conn *net.TCPConn) string {
	defer conn.Close()
	own, peer := conn.LocalAddr().(*net.TCPAddr), conn.RemoteAddr().(*net.TCPAddr)
	conn.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := conn.Write([]byte("echo\nhello")); err != nil {
		return "cut off"
	}
	conn.CloseWrite()
	heard, _ := io.ReadAll(conn)
	return fmt.Sprintf("from %s to %s %d: %s", own.IP, peer.IP, peer.Port, heard)
}

// Arguments: name, address and port of each destination.
func main() {
	for next := 1; next+2 < len(os.Args); next += 3 {
		address := net.JoinHostPort(os.Args[next+1], os.Args[next+2])
		conn, err := net.DialTimeout("tcp", address, 5*time.Second)
		said := "refused"
		if err == nil {
			said = converse(conn.(*net.TCPConn))
		} else if !errors.Is(err, syscall.ECONNREFUSED) {
			said = err.Error()
		}
		fmt.Printf("%s: %s\n", os.Args[next], said)
	}
}
