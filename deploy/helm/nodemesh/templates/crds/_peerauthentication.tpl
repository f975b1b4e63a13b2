{{- define "nodemesh.schema.peerAuthentication" -}}
description: Whether pods take connections that are not mutual TLS
type: object
x-kubernetes-validations:
  - rule: >-
      !has(self.portLevelMtls) || (has(self.selector) && has(self.selector.matchLabels) &&
      size(self.selector.matchLabels) > 0)
    message: portLevelMtls needs a selector
properties:
  selector:
    {{- include "nodemesh.schema.selector" . | nindent 4 }}
  mtls:
    description: For every port
    {{- include "nodemesh.schema.mtls" . | nindent 4 }}
  portLevelMtls:
    description: For single ports of the pod, by number
    type: object
    minProperties: 1
    maxProperties: 1024
    additionalProperties:
      {{- include "nodemesh.schema.mtls" . | nindent 6 }}
    x-kubernetes-validations:
      - rule: "self.all(port, port.matches('^[1-9][0-9]{0,4}$') && int(port) <= 65535)"
        message: a port is a number from 1 to 65535
{{- end }}

{{- define "nodemesh.schema.mtls" -}}
type: object
properties:
  mode:
    description: UNSET is as if nothing were said, PERMISSIVE takes both, STRICT takes mutual TLS only
    type: string
    enum: [UNSET, DISABLE, PERMISSIVE, STRICT]
{{- end }}
