package s3fake

import "encoding/xml"

// The documents of the protocol, as far as eddy reads or writes them.

type failure struct {
	XMLName      xml.Name `xml:"Error"`
	Code         string
	Message      string
	StorageClass string `xml:",omitempty"`
}

type versioning struct {
	XMLName xml.Name `xml:"VersioningConfiguration"`
	Status  string   `xml:",omitempty"`
}

type objectLock struct {
	XMLName xml.Name `xml:"ObjectLockConfiguration"`
	Enabled string   `xml:"ObjectLockEnabled"`
}

type lifecycle struct {
	XMLName xml.Name `xml:"LifecycleConfiguration"`
	Rules   string   `xml:",innerxml"`
}

type listing struct {
	XMLName               xml.Name `xml:"ListBucketResult"`
	IsTruncated           bool
	NextContinuationToken string         `xml:",omitempty"`
	Contents              []listedObject `xml:",omitempty"`
	CommonPrefixes        []commonPrefix `xml:",omitempty"`
}

type listedObject struct {
	Key, LastModified, ETag string
	Size                    int
	StorageClass            string `xml:",omitempty"`
}

type commonPrefix struct{ Prefix string }

type deletion struct {
	Quiet   bool
	Objects []struct{ Key string } `xml:"Object"`
}

type deletionResult struct {
	XMLName xml.Name `xml:"DeleteResult"`
}

type created struct {
	XMLName  xml.Name `xml:"InitiateMultipartUploadResult"`
	UploadId string
}

type copied struct {
	XMLName           xml.Name `xml:"CopyPartResult"`
	ETag              string
	LastModified      string
	ChecksumCRC64NVME string `xml:",omitempty"`
}

type completion struct {
	Parts []completionPart `xml:"Part"`
}

type completionPart struct {
	PartNumber        int
	ETag              string
	ChecksumCRC64NVME string
}

type completed struct {
	XMLName           xml.Name `xml:"CompleteMultipartUploadResult"`
	Key, ETag         string
	ChecksumCRC64NVME string `xml:",omitempty"`
}

type partList struct {
	XMLName              xml.Name `xml:"ListPartsResult"`
	IsTruncated          bool
	NextPartNumberMarker int          `xml:",omitempty"`
	Parts                []listedPart `xml:"Part"`
}

type listedPart struct {
	PartNumber        int
	ETag              string
	Size              int
	ChecksumCRC64NVME string `xml:",omitempty"`
}

type uploadList struct {
	XMLName            xml.Name `xml:"ListMultipartUploadsResult"`
	IsTruncated        bool
	NextKeyMarker      string         `xml:",omitempty"`
	NextUploadIdMarker string         `xml:",omitempty"`
	Uploads            []listedUpload `xml:"Upload"`
}

type listedUpload struct{ Key, UploadId, Initiated string }
