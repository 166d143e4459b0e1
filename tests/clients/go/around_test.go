package clients

import (
	"context"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/hashicorp/nomad/api"
	"github.com/hashicorp/nomad/api/contexts"
)

func TestPluginIsListedAndRead(t *testing.T) {
	c := connect(t)
	plugins, meta, err := c.CSIPlugins().List(nil)
	check(t, "list plugins", err)
	same(t, "the number of plugins", len(plugins), 1)
	mustHold(t, "an index", meta.LastIndex > 0, meta)
	stub := plugins[0]
	mustHold(t, "the row", stub.ID == pluginID && strings.HasSuffix(stub.Provider, ".moorage") && stub.ControllerRequired &&
		stub.ControllersHealthy == 1 && stub.ControllersExpected == 1 && stub.NodesHealthy == 1 &&
		stub.NodesExpected == 1 && stub.CreateIndex > 0, stub)
	none, _, err := c.CSIPlugins().List(&api.QueryOptions{Prefix: "go-none"})
	check(t, "list by prefix", err)
	same(t, "plugins with another prefix", len(none), 0)

	read, _, err := c.CSIPlugins().Info(pluginID, nil)
	check(t, "read", err)
	mustHold(t, "the plugin", read.ID == pluginID && read.Provider == stub.Provider && read.Version != "" &&
		read.ControllerRequired && read.ControllersHealthy == 1 && read.NodesHealthy == 1, read)
	node := onlyNode(t, c)
	controller, instance := read.Controllers[node.ID], read.Nodes[node.ID]
	mustHold(t, "a controller and a node on the node", controller != nil && instance != nil, read)
	mustHold(t, "both healthy", controller.Healthy && instance.Healthy && controller.PluginID == pluginID, controller)
	can := controller.ControllerInfo
	mustHold(t, "what the controller can", can != nil && can.SupportsCreateDelete && can.SupportsAttachDetach &&
		can.SupportsListVolumes && can.SupportsCreateDeleteSnapshot && can.SupportsListSnapshots &&
		can.SupportsClone && can.SupportsExpand && !can.SupportsGet && !can.SupportsCondition, can)
	info := instance.NodeInfo
	mustHold(t, "what the node can", info != nil && info.ID == node.ID && info.RequiresNodeStageVolume &&
		info.SupportsStats && info.SupportsExpand && info.MaxVolumes > 0, info)
	mustHold(t, "the node's topology", holdsValue(info.AccessibleTopology.Segments, node.ID), info.AccessibleTopology)
	_, _, err = c.CSIPlugins().Info("go-none", nil)
	refused(t, "a read of a missing plugin", err, "404", "plugin not found")
}

func TestNamespaceIsRegisteredListedAndDeleted(t *testing.T) {
	c := connect(t)
	asked := &api.Namespace{Name: "go-ns-a", Description: "of a test", Meta: map[string]string{"team": "blue"}}
	meta, err := c.Namespaces().Register(asked, nil)
	check(t, "register", err)
	mustHold(t, "the index of a write", meta.LastIndex > 0, meta)
	_, err = c.Namespaces().Register(&api.Namespace{Name: "go-ns-b"}, nil)
	check(t, "register another", err)

	read, _, err := c.Namespaces().Info("go-ns-a", nil)
	check(t, "read", err)
	mustHold(t, "what was written", read.Name == "go-ns-a" && read.Description == "of a test" &&
		read.Meta["team"] == "blue" && read.CreateIndex == meta.LastIndex, read)
	all, _, err := c.Namespaces().List(nil)
	check(t, "list", err)
	same(t, "all", strings.Join(listNames(all), " "), "default go-ns-a go-ns-b")
	some, _, err := c.Namespaces().PrefixList("go-ns-b", nil)
	check(t, "list by prefix", err)
	same(t, "some", strings.Join(listNames(some), " "), "go-ns-b")

	asked.Description = "changed"
	_, err = c.Namespaces().Register(asked, nil)
	check(t, "register again", err)
	changed, _, err := c.Namespaces().Info("go-ns-a", nil)
	check(t, "read again", err)
	mustHold(t, "the change", changed.Description == "changed" && changed.CreateIndex == read.CreateIndex &&
		changed.ModifyIndex > read.ModifyIndex, changed)
	for _, name := range []string{"go-ns-a", "go-ns-b"} {
		_, err = c.Namespaces().Delete(name, nil)
		check(t, "delete "+name, err)
	}
	_, _, err = c.Namespaces().Info("go-ns-a", nil)
	refused(t, "a read after the end", err, "404")
	_, err = c.Namespaces().Delete("default", nil)
	refused(t, "deleting the default namespace", err, "default")
}

func TestNodeIsListedAndRead(t *testing.T) {
	c := connect(t)
	stub := onlyNode(t, c)
	mustHold(t, "the row", len(stub.ID) == 36 && stub.Name != "" && stub.Status == "ready" && !stub.Drain &&
		stub.SchedulingEligibility == "eligible" && stub.Datacenter == "dc1", stub)
	found, _, err := c.Nodes().PrefixList(stub.ID[:8])
	check(t, "list by prefix", err)
	same(t, "the number found", len(found), 1)
	found, _, err = c.Nodes().PrefixListOpts("ffffffff", nil)
	check(t, "list by another prefix", err)
	same(t, "the number found by another prefix", len(found), 0)

	node, _, err := c.Nodes().Info(stub.ID, nil)
	check(t, "read", err)
	mustHold(t, "the node", node.ID == stub.ID && node.Name == stub.Name && node.Status == "ready", node)
	mustHold(t, "its plugins", node.CSIControllerPlugins[pluginID].Healthy && node.CSINodePlugins[pluginID].Healthy, node)
	mustHold(t, "four blocks of resources", *node.Resources.CPU > 0 && node.Reserved != nil &&
		node.NodeResources.Memory.MemoryMB > 0 && node.ReservedResources != nil, node)
	_, _, err = c.Nodes().Info("ffffffff-ffff-4fff-8fff-ffffffffffff", nil)
	refused(t, "a read of a missing node", err, "404", "node not found")
}

func TestAllocationIsListedAndRead(t *testing.T) {
	c := connect(t)
	create(t, c, describe("go-alloc"), nil)
	running := startAllocation(t, c, "go-alloc")
	id := running.ID
	node := onlyNode(t, c)
	mustHold(t, "the allocation", running.Name == "web[0]" && running.JobID == "web" && running.NodeID == node.ID &&
		running.Namespace == "default" && running.TaskStates["main"].State == "running", running)
	mustHold(t, "its job", *running.Job.Version == 0, running.Job)
	request := running.Job.TaskGroups[0].Volumes["data"]
	mustHold(t, "its request", request.Type == "csi" && request.Source == "go-alloc" && !request.ReadOnly, request)

	rows, meta, err := c.Allocations().List(nil)
	check(t, "list", err)
	mustHold(t, "an index", meta.LastIndex >= running.ModifyIndex, meta)
	mustHold(t, "a row", slices.ContainsFunc(rows, func(row *api.AllocationListStub) bool {
		return row.ID == id && row.ClientStatus == "running" && row.TaskGroup == "servers"
	}), rows)
	rows, _, err = c.Allocations().PrefixList(id)
	check(t, "list by prefix", err)
	same(t, "rows by prefix", len(rows), 1)

	onNode, _, err := c.Nodes().Allocations(node.ID, nil)
	check(t, "allocations of the node", err)
	for _, allocation := range onNode {
		// The command line follows this without a look whether it is there.
		mustHold(t, "a job with groups", allocation.Job != nil && len(allocation.Job.TaskGroups) == 1, allocation)
	}
	mustHold(t, "ours on the node", slices.ContainsFunc(onNode, func(a *api.Allocation) bool { return a.ID == id }), onNode)
	_, _, err = c.Allocations().Info("ffffffff-ffff-4fff-8fff-ffffffffffff", nil)
	refused(t, "a read of a missing allocation", err, "404")
}

func TestSearchFindsByPrefixAndByPart(t *testing.T) {
	c := connect(t)
	create(t, c, describe("go-search-a"), nil)
	create(t, c, describe("go-search-b"), nil)
	node := onlyNode(t, c)

	found, _, err := c.Search().PrefixSearch("go-search", contexts.Volumes, nil)
	check(t, "search volumes", err)
	same(t, "volumes", strings.Join(found.Matches[contexts.Volumes], " "), "go-search-a go-search-b")
	same(t, "truncated", found.Truncations[contexts.Volumes], false)
	cases := map[contexts.Context]string{
		contexts.Plugins: pluginID, contexts.Nodes: node.ID, contexts.Namespaces: "default", contexts.Volumes: "go-search-a",
	}
	for context, id := range cases {
		found, _, err = c.Search().PrefixSearch(id, contexts.All, nil)
		check(t, "search everything", err)
		same(t, "what was found of "+string(context), strings.Join(found.Matches[context], " "), id)
		same(t, "jobs found", len(found.Matches[contexts.Jobs]), 0)
	}
	fuzzy, _, err := c.Search().FuzzySearch("stpat", contexts.Plugins, nil)
	check(t, "search plugins by part", err)
	matches := fuzzy.Matches[contexts.Plugins]
	mustHold(t, "the plugin", len(matches) == 1 && matches[0].ID == pluginID, matches)
	fuzzy, _, err = c.Search().FuzzySearch(node.Name, contexts.Nodes, nil)
	check(t, "search nodes by name", err)
	matches = fuzzy.Matches[contexts.Nodes]
	mustHold(t, "the node, with its ID", len(matches) == 1 && matches[0].ID == node.Name &&
		slices.Contains(matches[0].Scope, node.ID), matches)
}

func TestServerTellsAboutItself(t *testing.T) {
	c := connect(t)
	_, address, _ := strings.Cut(os.Getenv("MOORAGE_TEST_ADDR"), "://")
	leader, err := c.Status().Leader()
	check(t, "leader", err)
	same(t, "the leader", leader, address)
	leader, err = c.Status().RegionLeader("global")
	check(t, "leader of the region", err)
	same(t, "the leader of the region", leader, address)
	_, err = c.Status().RegionLeader("elsewhere")
	refused(t, "the leader of another region", err, "No path to region")
	peers, err := c.Status().Peers()
	check(t, "peers", err)
	same(t, "the peers", strings.Join(peers, " "), address)
	regions, err := c.Regions().List()
	check(t, "regions", err)
	same(t, "the regions", strings.Join(regions, " "), "global")

	self, err := c.Agent().Self()
	check(t, "self", err)
	mustHold(t, "itself", self.Member.Status == "alive" && self.Stats["client"]["node_id"] == onlyNode(t, c).ID, self)
	page, isMap := self.Config["UI"].(map[string]any)
	mustHold(t, "no hints at pages that are not there", isMap && page["ShowCLIHints"] == false, self.Config)
	members, err := c.Agent().Members()
	check(t, "members", err)
	mustHold(t, "one member", len(members.Members) == 1 && members.ServerRegion == "global", members)
	member := members.Members[0]
	same(t, "the address of the member that leads", member.Addr+":"+member.Tags["port"], leader)
	same(t, "the member's port", strconv.Itoa(int(member.Port)), member.Tags["port"])
	name, err := c.Agent().NodeName()
	check(t, "name", err)
	same(t, "the name", name, member.Name)
	datacenter, err := c.Agent().Datacenter()
	check(t, "datacenter", err)
	same(t, "the datacenter", datacenter, "dc1")
	region, err := c.Agent().Region()
	check(t, "region", err)
	same(t, "the region", region, "global")
	servers, err := c.Agent().Servers()
	check(t, "servers", err)
	same(t, "the servers", strings.Join(servers, " "), address)
	health, err := c.Agent().Health()
	check(t, "health", err)
	mustHold(t, "both parts well", health.Server.Ok && health.Client.Ok, health)
	check(t, "garbage collection", c.System().GarbageCollect())
	jobs, _, err := c.Jobs().List(nil)
	check(t, "jobs", err)
	same(t, "the number of jobs", len(jobs), 0)
}

func listNames(namespaces []*api.Namespace) []string {
	names := []string{}
	for _, namespace := range namespaces {
		names = append(names, namespace.Name)
	}
	slices.Sort(names)
	return names
}

func TestEventsTellOfVolumesPluginsAndNodes(t *testing.T) {
	c := connect(t)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	made := create(t, c, describe("go-event"), nil)
	topics := map[api.Topic][]string{"CSIVolume": {"go-event"}, "CSIPlugin": {pluginID}, api.TopicNode: {"*"}}
	stream, err := c.EventStream().Stream(ctx, topics, 0, nil)
	check(t, "open the stream", err)
	check(t, "delete", c.CSIVolumes().DeleteOpts(&api.CSIVolumeDeleteRequest{ExternalVolumeID: "go-event"}, nil))

	seen := map[string]api.Event{}
	last := uint64(0)
	for seen["CSIVolume CSIVolumeDeregistered"].Index <= made.ModifyIndex {
		lines, isOpen := <-stream
		mustHold(t, "an open stream", isOpen, seen)
		check(t, "a line of the stream", lines.Err)
		mustHold(t, "indexes that grow", lines.Index > last, lines.Index)
		last = lines.Index
		for _, event := range lines.Events {
			mustHold(t, "a topic asked for", len(topics[event.Topic]) > 0, event.Topic)
			seen[string(event.Topic)+" "+event.Type] = event
		}
	}
	registered := seen["CSIVolume CSIVolumeRegistered"]
	same(t, "Key", registered.Key, "go-event")
	mustHold(t, "keys to filter by", slices.Contains(registered.FilterKeys, pluginID), registered.FilterKeys)
	volume, isMap := registered.Payload["Volume"].(map[string]any)
	mustHold(t, "the volume", isMap && volume["ExternalID"] == made.ExternalID && volume["Secrets"] == nil, volume)
	// A plugin's event has the type of the write that caused it.
	same(t, "the plugin's key", seen["CSIPlugin NodeRegistration"].Key, pluginID)
	registration := seen["Node NodeRegistration"]
	node, err := registration.Node()
	check(t, "read the node of an event", err)
	same(t, "the node's ID", node.ID, onlyNode(t, c).ID)
}
