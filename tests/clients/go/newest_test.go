//go:build !nomad13

// Calls that the client of Nomad 1.3 does not have.
package clients

import (
	"testing"

	"github.com/hashicorp/nomad/api"
	"github.com/hashicorp/nomad/api/contexts"
)

func TestCallsWithOptionsTellWhatWasWritten(t *testing.T) {
	c := connect(t)
	w := &api.WriteOptions{}
	made, meta, err := c.CSIVolumes().CreateOpts(&api.CSIVolumeCreateRequest{Volumes: []*api.CSIVolume{describe("go-opts")}}, w)
	check(t, "create", err)
	same(t, "the number made", len(made.Volumes), 1)
	mustHold(t, "what was made", made.Volumes[0].ID == "go-opts" && made.Volumes[0].CreateTime > 0, made.Volumes[0])
	same(t, "Warnings", made.Warnings, "")
	again := describe("go-opts")
	again.ExternalID = made.Volumes[0].ExternalID
	written, after, err := c.CSIVolumes().RegisterOpts(&api.CSIVolumeRegisterRequest{Volumes: []*api.CSIVolume{again}}, w)
	check(t, "register", err)
	mustHold(t, "a later write", after.LastIndex > meta.LastIndex, after)
	same(t, "the number registered", len(written.Volumes), 1)
	same(t, "the external ID", written.Volumes[0].ExternalID, again.ExternalID)
	rows, _, err := c.CSIVolumes().List(&api.QueryOptions{Prefix: "go-opts"})
	check(t, "list", err)
	mustHold(t, "counts and times in the row", rows[0].CurrentWriters == 0 && rows[0].CreateTime > 0 &&
		rows[0].ModifyTime >= rows[0].CreateTime, rows[0])
	check(t, "delete", c.CSIVolumes().DeleteOpts(&api.CSIVolumeDeleteRequest{ExternalVolumeID: "go-opts"}, w))
}

func TestThereAreNoHostVolumes(t *testing.T) {
	c := connect(t)
	rows, _, err := c.HostVolumes().List(&api.HostVolumeListRequest{}, nil)
	check(t, "list host volumes", err)
	same(t, "the number of host volumes", len(rows), 0)
	_, _, err = c.HostVolumes().Get("60000000-0000-4000-8000-000000000009", nil)
	refused(t, "a read of a host volume", err, "404", "volume not found")
	claims, _, err := c.TaskGroupHostVolumeClaims().List(&api.TaskGroupHostVolumeClaimsListRequest{}, nil)
	check(t, "list claims of host volumes", err)
	same(t, "the number of claims", len(claims), 0)
	// Completion of volume IDs asks for both kinds and drops all when one is refused.
	found, _, err := c.Search().PrefixSearch("x", contexts.Context("host_volumes"), nil)
	check(t, "search host volumes", err)
	same(t, "the number found", len(found.Matches["host_volumes"]), 0)
}

func TestMembersAndPluginsTellTimes(t *testing.T) {
	c := connect(t)
	members, err := c.Agent().MembersOpts(&api.QueryOptions{AllowStale: true})
	check(t, "members", err)
	same(t, "the number of members", len(members.Members), 1)
	read, _, err := c.CSIPlugins().Info(pluginID, nil)
	check(t, "read the plugin", err)
	mustHold(t, "times", read.CreateTime > 0 && read.ModifyTime >= read.CreateTime, read)
}
