// Enforces NetworkPolicies on a node: `policies NODE KUBECONFIG`, in the node's network, until SIGTERM. It is the reference implementation
// of Kubernetes' network group, which decides on packets in user space; its own program reads its login from inside a pod only.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/kube-network-policies/pkg/networkpolicy"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: policies NODE KUBECONFIG")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := enforce(ctx, os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func enforce(ctx context.Context, node, config string) error {
	login, err := clientcmd.BuildConfigFromFlags("", config)
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(login)
	if err != nil {
		return err
	}
	watched := informers.NewSharedInformerFactory(client, 0)
	controller, err := networkpolicy.NewController(
		client,
		watched.Networking().V1().NetworkPolicies(),
		watched.Core().V1().Namespaces(),
		watched.Core().V1().Pods(),
		nil, nil, nil, nil,
		// without the runtime's interface it would read a pod's name from a plugin that it did not make; not reached, it is empty
		networkpolicy.Config{NodeName: node, NetfilterBug1766Fix: false, NRIdisabled: false},
	)
	if err != nil {
		return err
	}
	watched.Start(ctx.Done())
	go func() {
		<-ctx.Done()
		time.Sleep(10 * time.Second) // if the rules cannot be removed
		os.Exit(1)
	}()
	return controller.Run(ctx)
}
