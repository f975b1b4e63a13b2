{{- define "nodemesh.schema.authorizationPolicy" -}}
description: Who may connect to what
type: object
x-kubernetes-validations:
  - rule: "(has(self.selector) ? 1 : 0) + (has(self.targetRef) ? 1 : 0) + (has(self.targetRefs) ? 1 : 0) <= 1"
    message: only one of selector, targetRef and targetRefs can be set
properties:
  selector:
    {{- include "nodemesh.schema.selector" . | nindent 4 }}
  targetRef:
    {{- include "nodemesh.schema.targetRef" . | nindent 4 }}
  targetRefs:
    description: What it is about, by name
    type: array
    maxItems: 16
    items:
      {{- include "nodemesh.schema.targetRef" . | nindent 6 }}
  action:
    description: What happens to a connection that a rule matches; ALLOW if absent
    type: string
    enum: [ALLOW, DENY, AUDIT, CUSTOM]
  provider:
    description: Who decides, for the action CUSTOM
    type: object
    properties:
      name:
        type: string
  rules:
    description: One that matches is enough; without rules, none does
    type: array
    maxItems: 512
    items:
      type: object
      properties:
        from:
          description: Who connects; one that matches is enough
          type: array
          maxItems: 512
          items:
            type: object
            properties:
              source:
                {{- include "nodemesh.schema.source" . | nindent 16 }}
        to:
          description: To what; one that matches is enough
          type: array
          items:
            type: object
            properties:
              operation:
                {{- include "nodemesh.schema.operation" . | nindent 16 }}
        when:
          description: Further conditions, which must all hold
          type: array
          items:
            type: object
            required: [key]
            properties:
              key:
                description: An attribute of the connection, such as source.ip or destination.port
                type: string
                minLength: 1
              values:
                {{- include "nodemesh.schema.strings" "Values of which the attribute must have one" | nindent 16 }}
              notValues:
                {{- include "nodemesh.schema.strings" "Values of which the attribute must have none" | nindent 16 }}
{{- end }}

{{- define "nodemesh.schema.targetRef" -}}
type: object
required: [kind, name]
properties:
  group:
    type: string
    maxLength: 253
  kind:
    type: string
    minLength: 1
    maxLength: 63
  name:
    type: string
    minLength: 1
    maxLength: 253
  namespace:
    type: string
    x-kubernetes-validations:
      - rule: self == ''
        message: what a policy is about is in the policy's own namespace
{{- end }}

{{- define "nodemesh.schema.source" -}}
type: object
x-kubernetes-validations:
  - rule: >-
      !(has(self.serviceAccounts) || has(self.notServiceAccounts)) || !(has(self.principals) ||
      has(self.notPrincipals) || has(self.namespaces) || has(self.notNamespaces))
    message: serviceAccounts go neither with principals nor with namespaces
properties:
  {{- range $name, $what := dict
    "principals" "identities, such as cluster.local/ns/shop/sa/web"
    "namespaces" "namespaces"
    "trustDomains" "trust domains"
    "ipBlocks" "addresses or CIDRs of the peer"
    "remoteIpBlocks" "addresses or CIDRs of the original client"
    "requestPrincipals" "identities of the request, as issuer/subject"
  }}
  {{ $name }}:
    {{- include "nodemesh.schema.strings" (printf "One of these %s" $what) | nindent 4 }}
  not{{ title $name }}:
    {{- include "nodemesh.schema.strings" (printf "None of these %s" $what) | nindent 4 }}
  {{- end }}
  {{- range $name, $what := dict "serviceAccounts" "One of these" "notServiceAccounts" "None of these" }}
  {{ $name }}:
    description: {{ printf "%s service accounts, as NAME or NAMESPACE/NAME" $what | quote }}
    type: array
    maxItems: 16
    items:
      type: string
      minLength: 1
      maxLength: 320
  {{- end }}
{{- end }}

{{- define "nodemesh.schema.operation" -}}
type: object
properties:
  {{- range $name, $what := dict
    "ports" "ports of the pod"
    "hosts" "hosts of the request"
    "methods" "methods of the request"
    "paths" "paths of the request"
  }}
  {{ $name }}:
    {{- include "nodemesh.schema.strings" (printf "One of these %s" $what) | nindent 4 }}
  not{{ title $name }}:
    {{- include "nodemesh.schema.strings" (printf "None of these %s" $what) | nindent 4 }}
  {{- end }}
{{- end }}
