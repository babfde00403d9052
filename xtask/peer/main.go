// Command stargz-store is the peer of the bench: stargz-snapshotter's own store library with its defaults, behind as
// much of its program's command line as the bench uses. (The program itself is not in the module that Go's proxy has.)
package main

import (
	"context"
	"flag"
	"log"
	"os"
	"os/signal"
	"syscall"

	clog "github.com/containerd/log"
	"github.com/containerd/stargz-snapshotter/fs/config"
	memorymetadata "github.com/containerd/stargz-snapshotter/metadata/memory"
	"github.com/containerd/stargz-snapshotter/service/resolver"
	"github.com/containerd/stargz-snapshotter/store"
)

func main() {
	root := flag.String("root", "/var/lib/stargz-store", "where its caches lie")
	flag.String("addr", "", "where it would take credentials: taken and not used")
	level := flag.String("log-level", "info", "what it logs")
	flag.Parse()
	if flag.NArg() != 1 {
		log.Fatal("usage: stargz-store [--root DIR] [--addr SOCKET] [--log-level LEVEL] MOUNTPOINT")
	}
	if err := clog.SetLevel(*level); err != nil {
		log.Fatal(err)
	}
	mountpoint := flag.Arg(0)
	if err := os.MkdirAll(mountpoint, 0o755); err != nil {
		log.Fatal(err)
	}
	var settings config.Config
	// The only default that is not Go's zero.
	settings.Direct = true
	hosts := resolver.RegistryHostsFromConfig(resolver.Config{})
	manager, err := store.NewLayerManager(context.Background(), *root, hosts, memorymetadata.NewReader, settings)
	if err != nil {
		log.Fatal(err)
	}
	end := make(chan os.Signal, 1)
	signal.Notify(end, os.Interrupt, syscall.SIGTERM)
	if err := store.Mount(context.Background(), mountpoint, manager, false); err != nil {
		log.Fatal(err)
	}
	clog.L.Info("mounted")
	<-end
	if err := syscall.Unmount(mountpoint, 0); err != nil {
		log.Fatal(err)
	}
}
