package swarm

import (
	"fmt"
	"maps"
	"slices"

	"google.golang.org/protobuf/encoding/protowire"
)

// kinds are the objects of a store by the number of their field, in a snapshot of the
// store; in an action the same follow one further (api/snapshot.proto, api/raft.proto).
var (
	inSnapshot = map[protowire.Number]string{
		1: "nodes", 2: "services", 3: "networks", 4: "tasks", 5: "clusters", 6: "secrets", 7: "resources", 8: "extensions", 9: "configs", 10: "volumes",
	}
	inAction = map[protowire.Number]string{
		2: "nodes", 3: "services", 4: "tasks", 5: "networks", 6: "clusters", 7: "secrets", 8: "resources", 9: "extensions", 10: "configs", 11: "volumes",
	}
	// named have an operator's name in spec.annotations.name.
	named = []string{"services", "networks", "clusters", "secrets", "configs", "volumes"}
)

// What an action does, and what an entry of the log is.
const (
	doCreate = 1
	doUpdate = 2
	doRemove = 3

	ofStore   = 0
	ofMembers = 1
	// addMember is a change of the members; others are 1, remove, and 2, update.
	addMember    = 0
	removeMember = 1
	updateMember = 2
)

// member is a manager as the raft log knows it.
type member struct {
	RaftID uint64
	NodeID string
	Addr   string // host:port
}

func parseMember(b []byte) (m member, err error) {
	var id, addr []byte
	err = scan(b, map[protowire.Number]*uint64{1: &m.RaftID}, map[protowire.Number]*[]byte{2: &id, 3: &addr})
	m.NodeID, m.Addr = string(id), string(addr)
	return m, err
}

// store is the swarm's objects: their ids, and the names that operators gave them.
// Nothing of what is in them is kept.
type store struct {
	objects map[string]map[string]string // by kind and id: the name
	members map[uint64]member
}

func newStore() *store {
	return &store{objects: map[string]map[string]string{}, members: map[uint64]member{}}
}

// begin reads a snapshot of the store (api.Snapshot).
func (s *store) begin(b []byte) error {
	var membership, content []byte
	if err := scan(b, nil, map[protowire.Number]*[]byte{2: &membership, 3: &content}); err != nil {
		return err
	}
	err := fields(membership, func(f field) error {
		if f.n != 1 || f.raw == nil {
			return nil
		}
		m, err := parseMember(f.raw)
		s.members[m.RaftID] = m
		return err
	})
	if err != nil {
		return fmt.Errorf("the members: %w", err)
	}
	return fields(content, func(f field) error {
		kind := inSnapshot[f.n]
		if kind == "" || f.raw == nil {
			return fmt.Errorf("%w: an object of kind %d", errWire, f.n)
		}
		return s.put(kind, f.raw)
	})
}

// apply does what a committed entry of the log says.
func (s *store) apply(typ uint64, b []byte) error {
	switch typ {
	case ofStore:
		return fields(b, func(f field) error { // api.InternalRaftRequest
			if f.n != 2 {
				return nil
			}
			return s.act(f.raw)
		})
	case ofMembers:
		var what, id uint64
		var context []byte
		if err := scan(b, map[protowire.Number]*uint64{2: &what, 3: &id}, map[protowire.Number]*[]byte{4: &context}); err != nil {
			return err
		}
		switch what {
		case addMember, updateMember:
			m, err := parseMember(context)
			if m.RaftID == 0 {
				m.RaftID = id
			}
			s.members[id] = m
			return err
		case removeMember:
			delete(s.members, id)
			return nil
		}
		return fmt.Errorf("%w: a change of members of kind %d", errWire, what)
	}
	return fmt.Errorf("%w: an entry of kind %d", errWire, typ)
}

// act does one api.StoreAction.
func (s *store) act(b []byte) error {
	var what uint64
	var kind string
	var object []byte
	err := fields(b, func(f field) error {
		if f.n == 1 {
			what = f.num
			return nil
		}
		if kind, object = inAction[f.n], f.raw; kind == "" || object == nil {
			return fmt.Errorf("%w: an object of kind %d", errWire, f.n)
		}
		return nil
	})
	if err != nil {
		return err
	}
	switch {
	case kind == "":
		return fmt.Errorf("%w: an action without an object", errWire)
	case what == doCreate || what == doUpdate:
		return s.put(kind, object)
	case what == doRemove:
		id, err := inner(object, 1)
		delete(s.objects[kind], string(id))
		return err
	}
	return fmt.Errorf("%w: an action of kind %d", errWire, what)
}

func (s *store) put(kind string, object []byte) error {
	id, err := inner(object, 1)
	if err != nil || len(id) == 0 {
		return fmt.Errorf("%w: one of the %s has no id", errWire, kind)
	}
	var name []byte
	if slices.Contains(named, kind) {
		if name, err = inner(object, 3, 1, 1); err != nil {
			return err
		}
	}
	if s.objects[kind] == nil {
		s.objects[kind] = map[string]string{}
	}
	s.objects[kind][string(id)] = string(name)
	return nil
}

// counts are how many objects of each kind there are.
func (s *store) counts() map[string]int64 {
	n := map[string]int64{}
	for kind, all := range s.objects {
		if len(all) > 0 {
			n[kind] = int64(len(all))
		}
	}
	return n
}

// names are those of a kind, in order.
func (s *store) names(kind string) []string {
	return slices.Sorted(maps.Values(s.objects[kind]))
}

// managers are the members but one, in order of their ids.
func (s *store) managers(but string) (all []member) {
	for _, id := range slices.Sorted(maps.Keys(s.members)) {
		if m := s.members[id]; m.NodeID != but {
			all = append(all, m)
		}
	}
	return all
}
