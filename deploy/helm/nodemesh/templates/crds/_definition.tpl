{{- /*
A CustomResourceDefinition with one schema for all its versions.
Takes context, group, kind, plural, short name, versions (the first is stored), template of the schema of
`spec`, and printer columns as pairs of name and path.
*/ -}}
{{- define "nodemesh.definition" -}}
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata:
  name: {{ .plural }}.{{ .group }}
  labels:
    app.kubernetes.io/name: nodemesh
    app.kubernetes.io/component: crds
    app.kubernetes.io/instance: {{ .context.Release.Name }}
    {{- include "nodemesh.commonLabels" .context | nindent 4 }}
  annotations:
    # With a definition go all resources of its kind: policies must not vanish with a release.
    helm.sh/resource-policy: keep
spec:
  group: {{ .group }}
  scope: Namespaced
  names:
    kind: {{ .kind }}
    listKind: {{ .kind }}List
    plural: {{ .plural }}
    singular: {{ lower .kind }}
    shortNames: [{{ .short }}]
    categories: [mesh]
  versions:
    {{- range $index, $version := .versions }}
    - name: {{ $version }}
      served: true
      storage: {{ eq $index 0 }}
      subresources:
        status: {}
      additionalPrinterColumns:
        {{- range $.columns }}
        - name: {{ .name }}
          type: string
          jsonPath: {{ .path }}
        {{- end }}
        - name: Accepted
          type: string
          description: Whether it could be read
          jsonPath: .status.conditions[?(@.type=="nodemesh.io/Accepted")].status
        - name: In Force
          type: string
          description: How much of it is in force. AsWritten, Partly, No, or what it said Earlier
          jsonPath: .status.conditions[?(@.type=="nodemesh.io/InForce")].reason
        - name: Mistakes
          type: string
          priority: 1
          jsonPath: .status.conditions[?(@.type=="nodemesh.io/Accepted")].message
        - name: Effect
          type: string
          priority: 1
          jsonPath: .status.conditions[?(@.type=="nodemesh.io/InForce")].message
        - name: Age
          type: date
          jsonPath: .metadata.creationTimestamp
      schema:
        openAPIV3Schema:
          type: object
          properties:
            spec:
              {{- include $.schema $ | nindent 14 }}
            status:
              {{- include "nodemesh.schema.status" $ | nindent 14 }}
    {{- end }}
{{- end }}

{{- /* What controllers say of a resource. Whatever else others write there stays. */ -}}
{{- define "nodemesh.schema.status" -}}
type: object
x-kubernetes-preserve-unknown-fields: true
properties:
  observedGeneration:
    x-kubernetes-int-or-string: true
  conditions:
    type: array
    x-kubernetes-list-type: map
    x-kubernetes-list-map-keys: [type]
    items:
      type: object
      required: [type, status]
      x-kubernetes-preserve-unknown-fields: true
      properties:
        type:
          type: string
        status:
          type: string
        reason:
          type: string
        message:
          type: string
        observedGeneration:
          type: integer
          format: int64
        lastTransitionTime:
          type: string
          format: date-time
        lastProbeTime:
          type: string
          format: date-time
{{- end }}

{{- /* A list of strings, none of them empty. Takes the description. */ -}}
{{- define "nodemesh.schema.strings" -}}
description: {{ . | quote }}
type: array
items:
  type: string
  minLength: 1
{{- end }}

{{- /* Pods by all of these labels. */ -}}
{{- define "nodemesh.schema.selector" -}}
description: The pods that it is about, by their labels; all of them without it
type: object
properties:
  matchLabels:
    type: object
    maxProperties: 4096
    additionalProperties:
      type: string
      maxLength: 63
      x-kubernetes-validations:
        - rule: "!self.contains('*')"
          message: a label's value is matched as it is; wildcards are not known here
    x-kubernetes-validations:
      - rule: "self.all(key, key != '' && !key.contains('*'))"
        message: a label's key is not empty and has no wildcards
{{- end }}

{{- /* A length of time such as 1h30m, at least a millisecond. Takes the description. */ -}}
{{- define "nodemesh.schema.duration" -}}
description: {{ . | quote }}
type: string
x-kubernetes-validations:
  - rule: duration(self) >= duration('1ms')
    message: a duration is at least 1ms
{{- end }}
