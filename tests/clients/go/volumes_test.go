package clients

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"
)

func TestVolumeIsCreatedReadAndDeleted(t *testing.T) {
	c := connect(t)
	asked := describe("go-life")
	asked.Parameters = map[string]string{}
	made := create(t, c, asked, nil)

	read, meta, err := c.CSIVolumes().Info("go-life", nil)
	check(t, "read", err)
	mustHold(t, "an index, a leader and no lag", meta.LastIndex > 0 && meta.KnownLeader && meta.LastContact == 0, meta)
	same(t, "ID", read.ID, "go-life")
	same(t, "Name", read.Name, "name of go-life")
	same(t, "Namespace", read.Namespace, "default")
	same(t, "ExternalID", read.ExternalID, made.ExternalID)
	same(t, "PluginID", read.PluginID, pluginID)
	plugin, _, err := c.CSIPlugins().Info(pluginID, nil)
	check(t, "read the plugin", err)
	same(t, "Provider", read.Provider, plugin.Provider)
	same(t, "ProviderVersion", read.ProviderVersion, plugin.Version)
	same(t, "Capacity", read.Capacity, mib)
	same(t, "RequestedCapacityMin", read.RequestedCapacityMin, mib)
	same(t, "RequestedCapacityMax", read.RequestedCapacityMax, 2*mib)
	same(t, "the number of capabilities", len(read.RequestedCapabilities), 1)
	same(t, "the capability", *read.RequestedCapabilities[0], *asked.RequestedCapabilities[0])
	mustHold(t, "no access mode before a claim", read.AccessMode == "" && read.AttachmentMode == "", read)
	mustHold(t, "a healthy plugin", read.Schedulable && read.ControllerRequired, read)
	same(t, "ControllersHealthy", read.ControllersHealthy, read.ControllersExpected)
	same(t, "NodesHealthy", read.NodesHealthy, 1)
	same(t, "NodesExpected", read.NodesExpected, 1)
	same(t, "the number of topologies", len(read.Topologies), 1)
	mustHold(t, "a topology with the node", holdsValue(read.Topologies[0].Segments, onlyNode(t, c).ID), read.Topologies)
	mustHold(t, "no topology was asked for", read.RequestedTopologies == nil, read.RequestedTopologies)
	mustHold(t, "no use", len(read.Allocations)+len(read.ReadAllocs)+len(read.WriteAllocs) == 0, read)
	mustHold(t, "never exhausted", read.ResourceExhausted.IsZero(), read.ResourceExhausted)
	mustHold(t, "indexes in order", 0 < read.CreateIndex && read.CreateIndex <= read.ModifyIndex, read)
	mustHold(t, "the index of the answer covers it", read.ModifyIndex <= meta.LastIndex, read)
	mustHold(t, "no secrets", read.Secrets == nil, "a read shows secrets")
	same(t, "FSType", read.MountOptions.FSType, "ext4")
	same(t, "MountFlags", strings.Join(read.MountOptions.MountFlags, ","), "[REDACTED]")

	refused(t, "deleting it with an unknown namespace",
		c.CSIVolumes().DeleteOpts(&api.CSIVolumeDeleteRequest{ExternalVolumeID: "go-life"},
			&api.WriteOptions{Namespace: "go-nowhere"}))
	secrets := api.CSISecrets{"password": "a=b", "user": "me"}
	err = c.CSIVolumes().DeleteOpts(&api.CSIVolumeDeleteRequest{ExternalVolumeID: "go-life", Secrets: secrets}, nil)
	check(t, "delete", err)
	_, _, err = c.CSIVolumes().Info("go-life", nil)
	refused(t, "a read after the end", err, "404", "volume not found")
	mustHold(t, "the driver has no such volume", findExternal(t, c, made.ExternalID) == nil, made.ExternalID)
}

func TestOldDeleteCallDeletes(t *testing.T) {
	c := connect(t)
	made := create(t, c, describe("go-old-delete"), nil)
	check(t, "delete", c.CSIVolumes().Delete("go-old-delete", nil))
	mustHold(t, "the driver has no such volume", findExternal(t, c, made.ExternalID) == nil, made.ExternalID)
}

func TestCreateAgainIsAnUpdateAndGrows(t *testing.T) {
	c := connect(t)
	first := create(t, c, describe("go-grow"), nil)
	larger := describe("go-grow")
	larger.RequestedCapacityMin, larger.RequestedCapacityMax = 3*mib, 4*mib
	made, _, err := c.CSIVolumes().Create(larger, nil)
	check(t, "create again", err)
	same(t, "the external ID", made[0].ExternalID, first.ExternalID)
	read, _, err := c.CSIVolumes().Info("go-grow", nil)
	check(t, "read", err)
	same(t, "Capacity", read.Capacity, 3*mib)
	same(t, "CreateIndex", read.CreateIndex, first.CreateIndex)
	same(t, "what the driver has", findExternal(t, c, first.ExternalID).CapacityBytes, 3*mib)

	bad := describe("go-bad")
	bad.PluginID = "go-no-such-plugin"
	_, _, err = c.CSIVolumes().Create(bad, nil)
	refused(t, "a create by an unknown plugin", err, "500", "go-no-such-plugin")
	bad = describe("go-bad")
	bad.RequestedCapabilities[0].AccessMode = "single-node-reader"
	_, _, err = c.CSIVolumes().Create(bad, nil)
	refused(t, "a create with an unknown mode", err, "unknown volume access mode: single-node-reader")
}

func TestVolumeIsDeregisteredAndRegistered(t *testing.T) {
	c := connect(t)
	made := create(t, c, describe("go-reg"), nil)
	check(t, "deregister", c.CSIVolumes().Deregister("go-reg", false, nil))
	_, _, err := c.CSIVolumes().Info("go-reg", nil)
	refused(t, "a read of what is deregistered", err, "404")
	mustHold(t, "the driver keeps it", findExternal(t, c, made.ExternalID) != nil, made.ExternalID)

	again := describe("go-reg")
	again.ExternalID = made.ExternalID
	meta, err := c.CSIVolumes().Register(again, nil)
	check(t, "register", err)
	mustHold(t, "the index of a write", meta.LastIndex > made.ModifyIndex, meta)
	read, _, err := c.CSIVolumes().Info("go-reg", nil)
	check(t, "read", err)
	same(t, "ExternalID", read.ExternalID, made.ExternalID)
	check(t, "deregister with force", c.CSIVolumes().Deregister("go-reg", true, nil))
	_, err = c.CSIVolumes().Register(again, nil)
	check(t, "register for the clean-up", err)
}

func TestIdsOfOneEachAllocationAreAddressed(t *testing.T) {
	c := connect(t)
	create(t, c, describe("go-data[0]"), nil)
	read, _, err := c.CSIVolumes().Info("go-data[0]", nil)
	check(t, "read", err)
	same(t, "ID", read.ID, "go-data[0]")
}

func TestListNarrowsAndPages(t *testing.T) {
	c := connect(t)
	for number := range 5 {
		create(t, c, describe(fmt.Sprintf("go-page-%d", number)), nil)
	}
	all, meta, err := c.CSIVolumes().List(&api.QueryOptions{Prefix: "go-page-"})
	check(t, "list", err)
	same(t, "all, newest first", listIDs(all), "go-page-4 go-page-3 go-page-2 go-page-1 go-page-0")
	same(t, "the token of the only page", meta.NextToken, "")
	stub := all[0]
	mustHold(t, "a whole row", stub.Name == "name of go-page-4" && stub.PluginID == pluginID && stub.Schedulable &&
		stub.Namespace == "default" && stub.ExternalID != "" && stub.NodesHealthy == 1, stub)

	var seen, token = []string{}, ""
	for pages := 1; ; pages++ {
		page, meta, err := c.CSIVolumes().List(&api.QueryOptions{Prefix: "go-page-", PerPage: 2, NextToken: token})
		check(t, "list a page", err)
		seen = append(seen, listIDs(page))
		if token = meta.NextToken; token == "" {
			same(t, "the number of pages", pages, 3)
			break
		}
		same(t, "the rows of a full page", len(page), 2)
	}
	same(t, "the pages", strings.Join(seen, " / "), "go-page-1 go-page-0 / go-page-3 go-page-2 / go-page-4")

	byPlugin, _, err := c.CSIVolumes().List(&api.QueryOptions{
		Prefix: "go-page-", Params: map[string]string{"plugin_id": "go-other"}})
	check(t, "list of a plugin", err)
	same(t, "rows of another plugin", len(byPlugin), 0)
	// The call's name promises the plugin's volumes; what it sends is the ID as a prefix of volume IDs.
	named, _, err := c.CSIVolumes().PluginList("go-page-3")
	check(t, "list by the client's plugin call", err)
	same(t, "its rows", listIDs(named), "go-page-3")
}

func TestListFiltersByExpression(t *testing.T) {
	c := connect(t)
	create(t, c, describe("go-filter-a"), nil)
	create(t, c, describe("go-filter-b"), nil)
	filter := `Name == "name of go-filter-b" and PluginID == "hostpath"`
	found, _, err := c.CSIVolumes().List(&api.QueryOptions{Prefix: "go-filter-", Filter: filter})
	check(t, "list", err)
	same(t, "what passes", listIDs(found), "go-filter-b")
	_, _, err = c.CSIVolumes().List(&api.QueryOptions{Filter: "Name =="})
	refused(t, "a broken filter", err, "400")
}

func TestListFollowsChangesWithoutPolling(t *testing.T) {
	c := connect(t)
	_, meta, err := c.CSIVolumes().List(nil)
	check(t, "list", err)
	unchanged, after, err := c.CSIVolumes().List(&api.QueryOptions{WaitIndex: meta.LastIndex, WaitTime: time.Millisecond})
	check(t, "a wait that ends by itself", err)
	same(t, "the index when nothing changed", after.LastIndex, meta.LastIndex)
	same(t, "rows before", strings.Contains(listIDs(unchanged), "go-watched"), false)

	type seen struct {
		answers int
		err     error
	}
	ended := make(chan seen, 1)
	go func() {
		index := meta.LastIndex
		for answers := 1; ; answers++ {
			rows, meta, err := c.CSIVolumes().List(&api.QueryOptions{WaitIndex: index, WaitTime: patience})
			if err != nil || strings.Contains(listIDs(rows), "go-watched") || answers == 20 {
				ended <- seen{answers, err}
				return
			}
			index = meta.LastIndex
		}
	}()
	create(t, c, describe("go-watched"), nil)
	select {
	case found := <-ended:
		check(t, "watch", found.err)
		// A create is a few writes; many more answers mean that the wait does not wait.
		mustHold(t, "a few answers", found.answers < 20, found.answers)
	case <-time.After(patience):
		t.Fatal("the watch does not see the new volume")
	}
}

func TestVolumesLiveInNamespaces(t *testing.T) {
	c := connect(t)
	_, err := c.Namespaces().Register(&api.Namespace{Name: "go-space"}, nil)
	check(t, "register a namespace", err)
	t.Cleanup(func() {
		_, err := c.Namespaces().Delete("go-space", nil)
		check(t, "delete the namespace", err)
	})
	create(t, c, describe("go-same"), nil)
	inside := create(t, c, &api.CSIVolume{
		ID: "go-same", Name: "the other", PluginID: pluginID, RequestedCapabilities: describe("").RequestedCapabilities,
	}, &api.WriteOptions{Namespace: "go-space"})
	same(t, "Namespace", inside.Namespace, "go-space")
	read, _, err := c.CSIVolumes().Info("go-same", &api.QueryOptions{Namespace: "go-space"})
	check(t, "read", err)
	same(t, "Name", read.Name, "the other")
	all, _, err := c.CSIVolumes().List(&api.QueryOptions{Namespace: "*", Prefix: "go-same"})
	check(t, "list all namespaces", err)
	same(t, "rows", len(all), 2)
	_, err = c.Namespaces().Delete("go-space", nil)
	refused(t, "deleting a namespace in use", err, "has volumes")
	nowhere := describe("go-nowhere")
	nowhere.Namespace = "go-missing"
	_, _, err = c.CSIVolumes().Create(nowhere, nil)
	refused(t, "a create in a missing namespace", err, "go-missing")
}

func TestClaimedVolumeShowsItsUseAndIsDetached(t *testing.T) {
	c := connect(t)
	create(t, c, describe("go-used"), nil)
	node := onlyNode(t, c)
	id := startAllocation(t, c, "go-used").ID

	read, _, err := c.CSIVolumes().Info("go-used", nil)
	check(t, "read", err)
	same(t, "the number of uses", len(read.Allocations), 1)
	use := read.Allocations[0]
	mustHold(t, "the use", use.ID == id && use.NodeID == node.ID && use.NodeName == node.Name &&
		use.TaskGroup == "servers" && use.DesiredStatus == "run" && use.ClientStatus == "running" &&
		use.CreateTime > 0, use)
	_, writes := read.WriteAllocs[id]
	mustHold(t, "a writer", writes && len(read.ReadAllocs) == 0, read)
	same(t, "AccessMode", read.AccessMode, api.CSIVolumeAccessModeSingleNodeWriter)
	same(t, "AttachmentMode", read.AttachmentMode, api.CSIVolumeAttachmentModeFilesystem)
	published := findExternal(t, c, read.ExternalID).PublishedExternalNodeIDs
	same(t, "where the driver says it is", strings.Join(published, " "), node.ID)
	onNode, err := c.Nodes().CSIVolumes(node.ID, nil)
	check(t, "volumes of the node", err)
	same(t, "volumes of the node", listIDs(onNode), "go-used")

	refused(t, "a detach in use", c.CSIVolumes().Detach("go-used", node.ID, nil), "500", "volume in use")
	refused(t, "a deregister in use", c.CSIVolumes().Deregister("go-used", false, nil), "500", "volume in use")
	refused(t, "a delete in use",
		c.CSIVolumes().DeleteOpts(&api.CSIVolumeDeleteRequest{ExternalVolumeID: "go-used"}, nil), "500")

	stopAllocation(t, c, id)
	check(t, "detach", c.CSIVolumes().Detach("go-used", node.ID, nil))
	read, _, err = c.CSIVolumes().Info("go-used", nil)
	check(t, "read", err)
	mustHold(t, "no use", len(read.Allocations)+len(read.WriteAllocs) == 0 && read.AccessMode == "", read)
	same(t, "where it is", len(findExternal(t, c, read.ExternalID).PublishedExternalNodeIDs), 0)
	refused(t, "a detach of a missing volume", c.CSIVolumes().Detach("go-missing", node.ID, nil), "no such volume")
}

func TestNoReadTellsASecret(t *testing.T) {
	c := connect(t)
	create(t, c, describe("go-secret"), nil)
	for _, page := range []string{"/v1/volumes?type=csi", "/v1/volume/csi/go-secret", "/v1/volumes/external?plugin_id=hostpath"} {
		var found any
		_, err := c.Raw().Query(page, &found, nil)
		check(t, "read "+page, err)
		text, err := json.Marshal(found)
		check(t, "write down "+page, err)
		mustHold(t, "no secret in "+page, !strings.Contains(string(text), "not for anybody"), page)
		mustHold(t, "no mount flag in "+page, !strings.Contains(string(text), "noatime"), page)
	}
}

func listIDs(rows []*api.CSIVolumeListStub) string {
	ids := []string{}
	for _, row := range rows {
		ids = append(ids, row.ID)
	}
	return strings.Join(ids, " ")
}

func holdsValue(segments map[string]string, value string) bool {
	for _, found := range segments {
		if found == value {
			return true
		}
	}
	return false
}
