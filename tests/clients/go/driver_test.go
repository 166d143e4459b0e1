// What the driver itself has: its own list of volumes, and snapshots.
package clients

import (
	"fmt"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"
)

func TestExternalVolumesArePaged(t *testing.T) {
	c := connect(t)
	wanted := map[string]bool{}
	for number := range 3 {
		wanted[create(t, c, describe(fmt.Sprintf("go-ext-%d", number)), nil).ExternalID] = true
	}
	found, token, pages := 0, "", 0
	for more := true; more; more = token != "" {
		page, _, err := c.CSIVolumes().ListExternal(pluginID, &api.QueryOptions{PerPage: 2, NextToken: token})
		check(t, "list external", err)
		mustHold(t, "at most a page", len(page.Volumes) <= 2, len(page.Volumes))
		for _, row := range page.Volumes {
			if wanted[row.ExternalID] {
				found++
				mustHold(t, "a whole row", row.CapacityBytes == mib && !row.IsAbnormal, row)
			}
		}
		token = page.NextToken
		pages++
	}
	same(t, "the volumes found", found, 3)
	mustHold(t, "more than one page", pages > 1, pages)
	_, _, err := c.CSIVolumes().ListExternal("go-no-such-plugin", &api.QueryOptions{})
	refused(t, "a list of an unknown plugin", err, "no such plugin")
}

func TestSnapshotsAreCreatedListedRestoredAndDeleted(t *testing.T) {
	c := connect(t)
	source := create(t, c, describe("go-source"), nil)
	made := []*api.CSISnapshot{}
	for number := range 3 {
		asked := &api.CSISnapshot{
			SourceVolumeID: "go-source",
			Name:           fmt.Sprintf("go-snap-%d", number),
			Secrets:        api.CSISecrets{"password": "a=b"},
		}
		answer, _, err := c.CSIVolumes().CreateSnapshot(asked, nil)
		check(t, "create a snapshot", err)
		same(t, "the number of snapshots made", len(answer.Snapshots), 1)
		snapshot := answer.Snapshots[0]
		t.Cleanup(func() {
			check(t, "clean up a snapshot",
				c.CSIVolumes().DeleteSnapshot(&api.CSISnapshot{ID: snapshot.ID, PluginID: pluginID}, nil))
		})
		same(t, "ExternalSourceVolumeID", snapshot.ExternalSourceVolumeID, source.ExternalID)
		same(t, "SizeBytes", snapshot.SizeBytes, mib)
		age := time.Since(time.Unix(snapshot.CreateTime, 0))
		mustHold(t, "a time in seconds", -time.Hour < age && age < time.Hour, snapshot.CreateTime)
		mustHold(t, "ready, with an ID", snapshot.IsReady && snapshot.ID != "", snapshot)
		made = append(made, snapshot)
	}

	request := &api.CSISnapshotListRequest{PluginID: pluginID, Secrets: api.CSISecrets{"k": "v"}}
	request.PerPage = 2
	listed := map[string]*api.CSISnapshot{}
	for pages := 1; ; pages++ {
		page, _, err := c.CSIVolumes().ListSnapshotsOpts(request)
		check(t, "list snapshots", err)
		for _, row := range page.Snapshots {
			listed[row.ID] = row
		}
		if request.NextToken = page.NextToken; page.NextToken == "" {
			same(t, "the number of pages", pages, 2)
			break
		}
	}
	same(t, "the number of snapshots", len(listed), 3)
	for _, snapshot := range made {
		row := listed[snapshot.ID]
		mustHold(t, "a row for each", row != nil && row.ExternalSourceVolumeID == source.ExternalID, listed)
		mustHold(t, "the same facts", row.SizeBytes == mib && row.IsReady && row.CreateTime == snapshot.CreateTime, row)
	}
	old, _, err := c.CSIVolumes().ListSnapshots(pluginID, "", &api.QueryOptions{})
	check(t, "list snapshots by the old call", err)
	same(t, "the number of snapshots", len(old.Snapshots), 3)

	restored := describe("go-restored")
	restored.SnapshotID = made[0].ID
	create(t, c, restored, nil)
	read, _, err := c.CSIVolumes().Info("go-restored", nil)
	check(t, "read", err)
	same(t, "SnapshotID", read.SnapshotID, made[0].ID)
	same(t, "where it came from", findExternal(t, c, read.ExternalID).SnapshotID, made[0].ID)
	clone := describe("go-clone")
	clone.CloneID = source.ExternalID
	create(t, c, clone, nil)

	gone := &api.CSISnapshot{ID: made[2].ID, PluginID: pluginID, Secrets: api.CSISecrets{"k": "v"}}
	check(t, "delete a snapshot", c.CSIVolumes().DeleteSnapshot(gone, nil))
	check(t, "delete it again", c.CSIVolumes().DeleteSnapshot(gone, nil))
	left, _, err := c.CSIVolumes().ListSnapshotsOpts(&api.CSISnapshotListRequest{PluginID: pluginID})
	check(t, "list snapshots", err)
	same(t, "the number left", len(left.Snapshots), 2)
	_, _, err = c.CSIVolumes().CreateSnapshot(&api.CSISnapshot{SourceVolumeID: "go-missing", Name: "x"}, nil)
	refused(t, "a snapshot of a missing volume", err, "go-missing")
}

// findExternal looks for a volume in the driver's own list; nil when it is not there.
func findExternal(t *testing.T, c *api.Client, externalID string) *api.CSIVolumeExternalStub {
	t.Helper()
	token := ""
	for {
		page, _, err := c.CSIVolumes().ListExternal(pluginID, &api.QueryOptions{NextToken: token})
		check(t, "list external", err)
		for _, row := range page.Volumes {
			if row.ExternalID == externalID {
				return row
			}
		}
		if token = page.NextToken; token == "" {
			return nil
		}
	}
}
