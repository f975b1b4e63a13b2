// Package conformance is the Gateway API's own conformance suite as one program.
package conformance

import (
	"testing"

	"sigs.k8s.io/gateway-api/conformance"
	// Named so that go.mod says its version: the suite's own go.mod has it as a neighbouring directory.
	_ "sigs.k8s.io/gateway-api/pkg/consts"
)

func TestConformance(t *testing.T) {
	conformance.RunConformance(t)
}
