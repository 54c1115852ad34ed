// A program for the run time of Go: goroutines, channels and timers, and a server of net/http whose listener is one of
// multipath TCP, as that of every server of Go 1.24 and later is.
package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"
)

const multipath = 262

type connection struct{}

func main() {
	port, err := strconv.Atoi(os.Args[1])
	if err != nil {
		panic(err)
	}
	var turns, ticks, garbage int64
	ring(3, &turns, &garbage)
	go func() {
		for range time.NewTicker(10 * time.Millisecond).C {
			atomic.AddInt64(&ticks, 1)
		}
	}()
	tree := grow(14)
	var connections int64
	server := http.Server{
		Handler: http.HandlerFunc(func(out http.ResponseWriter, _ *http.Request) {}),
		ConnContext: func(parent context.Context, _ net.Conn) context.Context {
			return context.WithValue(parent, connection{}, atomic.AddInt64(&connections, 1))
		},
	}
	server.Handler = http.HandlerFunc(func(out http.ResponseWriter, request *http.Request) {
		switch request.URL.Path {
		case "/turns":
			fmt.Fprint(out, atomic.LoadInt64(&turns))
		case "/ticks":
			fmt.Fprint(out, atomic.LoadInt64(&ticks))
		case "/heap":
			runtime.GC()
			fmt.Fprint(out, tree.count())
		case "/connection":
			fmt.Fprint(out, request.Context().Value(connection{}))
		case "/later":
			select {
			case <-time.After(300 * time.Millisecond):
				fmt.Fprint(out, "done")
			case <-request.Context().Done():
			}
		}
	})
	panic(server.Serve(listen(port)))
}

// A token goes round among goroutines, each bound to a thread of its own.
func ring(size int, turns, garbage *int64) {
	first := make(chan int64)
	in := first
	for i := 1; i <= size; i++ {
		out := first
		if i < size {
			out = make(chan int64)
		}
		go func(in, out chan int64) {
			runtime.LockOSThread()
			for token := range in {
				atomic.AddInt64(garbage, int64(len(make([]byte, 32*1024+token%2))))
				atomic.AddInt64(turns, 1)
				time.Sleep(time.Millisecond)
				out <- token + 1
			}
		}(in, out)
		in = out
	}
	first <- 0
}

type node struct{ left, right *node }

func grow(depth int) *node {
	if depth == 0 {
		return nil
	}
	return &node{grow(depth - 1), grow(depth - 1)}
}

func (n *node) count() int {
	if n == nil {
		return 0
	}
	return 1 + n.left.count() + n.right.count()
}

// Debian 12's Go has no ListenConfig.SetMultipathTCP yet.
func listen(port int) net.Listener {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, multipath)
	if err != nil { // the kernel has none
		fd, err = syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	}
	if err == nil {
		err = syscall.Bind(fd, &syscall.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}})
	}
	if err == nil {
		err = syscall.Listen(fd, 16)
	}
	if err != nil {
		panic(err)
	}
	file := os.NewFile(uintptr(fd), "listener")
	defer file.Close()
	listener, err := net.FileListener(file)
	if err != nil {
		panic(err)
	}
	return listener
}
