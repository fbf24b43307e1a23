package detect

import "slices"

// ServiceFiles are the files of this machine that define what runs a node: those of
// its unit and of its container. A node that nothing runs, or nothing that is known,
// has none.
func (h Host) ServiceFiles(want Choice) (files []string) {
	c, several, err := h.Choose(want)
	if err == nil {
		several = append(several, c)
	}
	for _, c := range several {
		if c.Unit != nil {
			files = append(files, c.Unit.Files...)
		}
		if c.Container != nil {
			files = append(files, c.Container.Files...)
		}
	}
	slices.Sort(files)
	return slices.Compact(files)
}
