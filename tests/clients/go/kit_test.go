// What the tests share: the client, volumes to create, and waiting for an allocation.
//
// MOORAGE_TEST_ADDR is the address of a `moorage dev` of its own, whose plugin is called hostpath. Each test makes
// what it needs under IDs of its own and removes it again.
package clients

import (
	"crypto/rand"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"
)

const (
	pluginID = "hostpath"
	mib      = int64(1 << 20)
	// How long anything may take. Generous: what is slow here is a machine with other work.
	patience = 30 * time.Second
)

func connect(t *testing.T) *api.Client {
	t.Helper()
	address := os.Getenv("MOORAGE_TEST_ADDR")
	if address == "" {
		t.Fatal("MOORAGE_TEST_ADDR is not set: it must be the address of a server that runs")
	}
	client, err := api.NewClient(&api.Config{Address: address})
	check(t, "a client", err)
	return client
}

func check(t *testing.T, what string, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// same fails when two values differ, with the name of what they are.
func same[T comparable](t *testing.T, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Fatalf("%s is %v, not %v", what, got, want)
	}
}

func mustHold(t *testing.T, what string, holds bool, seen any) {
	t.Helper()
	if !holds {
		t.Fatalf("%s does not hold: %+v", what, seen)
	}
}

// refused fails unless there is an error with each of the texts in it.
func refused(t *testing.T, what string, err error, texts ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("%s was not refused", what)
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			t.Fatalf("%s: %q does not hold %q", what, err, text)
		}
	}
}

func describe(id string) *api.CSIVolume {
	return &api.CSIVolume{
		ID:                   id,
		Name:                 "name of " + id,
		PluginID:             pluginID,
		RequestedCapacityMin: mib,
		RequestedCapacityMax: 2 * mib,
		RequestedCapabilities: []*api.CSIVolumeCapability{{
			AccessMode:     api.CSIVolumeAccessModeSingleNodeWriter,
			AttachmentMode: api.CSIVolumeAttachmentModeFilesystem,
		}},
		MountOptions: &api.CSIMountOptions{FSType: "ext4", MountFlags: []string{"noatime"}},
		Secrets:      api.CSISecrets{"password": "not for anybody's eyes"},
	}
}

// create makes a volume, and deletes it at the end of the test when it is still there.
func create(t *testing.T, c *api.Client, volume *api.CSIVolume, w *api.WriteOptions) *api.CSIVolume {
	t.Helper()
	made, meta, err := c.CSIVolumes().Create(volume, w)
	check(t, "create "+volume.ID, err)
	t.Cleanup(func() {
		request := &api.CSIVolumeDeleteRequest{ExternalVolumeID: volume.ID}
		if err := c.CSIVolumes().DeleteOpts(request, w); err != nil && !strings.Contains(err.Error(), "not found") {
			t.Errorf("delete %s: %v", volume.ID, err)
		}
	})
	same(t, "the number of volumes made", len(made), 1)
	same(t, "the ID of what was made", made[0].ID, volume.ID)
	mustHold(t, "an external ID", made[0].ExternalID != "", made[0])
	mustHold(t, "the index of a write", meta.LastIndex > 0, meta)
	return made[0]
}

func onlyNode(t *testing.T, c *api.Client) *api.NodeListStub {
	t.Helper()
	nodes, _, err := c.Nodes().List(nil)
	check(t, "list nodes", err)
	same(t, "the number of nodes", len(nodes), 1)
	return nodes[0]
}

// startAllocation claims a volume and has it mounted. The page is moorage's own, so the client has no name for it.
func startAllocation(t *testing.T, c *api.Client, volumeID string) *api.Allocation {
	t.Helper()
	var random [16]byte
	_, _ = rand.Read(random[:])
	id := fmt.Sprintf("%x-%x-%x-%x-%x", random[:4], random[4:6], random[6:8], random[8:10], random[10:])
	volume := map[string]any{
		"Name":           "data",
		"Source":         volumeID,
		"AccessMode":     "single-node-writer",
		"AttachmentMode": "file-system",
	}
	allocation := map[string]any{
		"ID":        id,
		"Name":      "web[0]",
		"JobID":     "web",
		"TaskGroup": "servers",
		"NodeID":    onlyNode(t, c).ID,
		"Tasks":     []string{"main"},
		"Volumes":   []any{volume},
	}
	var started api.Allocation
	_, err := c.Raw().Write("/v1/allocations", map[string]any{"Allocation": allocation}, &started, nil)
	check(t, "start an allocation", err)
	same(t, "the ID of the allocation", started.ID, id)
	t.Cleanup(func() { stopAllocation(t, c, id) })
	return waitAllocation(t, c, id, "running")
}

func stopAllocation(t *testing.T, c *api.Client, id string) {
	t.Helper()
	var stopped map[string]any
	_, err := c.Raw().Write("/v1/allocation/"+id+"/stop", nil, &stopped, nil)
	check(t, "stop an allocation", err)
	waitAllocation(t, c, id, "complete")
}

// waitAllocation follows an allocation by blocking queries until it has a status.
func waitAllocation(t *testing.T, c *api.Client, id, status string) *api.Allocation {
	t.Helper()
	index := uint64(0)
	for ends := time.Now().Add(patience); ; {
		found, meta, err := c.Allocations().Info(id, &api.QueryOptions{WaitIndex: index, WaitTime: time.Second})
		check(t, "read allocation "+id, err)
		if found.ClientStatus == status {
			return found
		}
		if time.Now().After(ends) {
			t.Fatalf("allocation %s is %q (%s), not %q", id, found.ClientStatus, found.ClientDescription, status)
		}
		index = meta.LastIndex
	}
}
