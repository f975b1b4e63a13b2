{{- /* Labels by which Deployments and DaemonSets know their pods: they can never change. Takes [context, component]. */ -}}
{{- define "nodemesh.selectorLabels" -}}
app.kubernetes.io/name: nodemesh
app.kubernetes.io/component: {{ index . 1 }}
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
{{- end }}

{{- /* Labels of every object. Takes the context. */ -}}
{{- define "nodemesh.commonLabels" -}}
app.kubernetes.io/part-of: nodemesh
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- /* Labels of an object of one component. Takes [context, component]. */ -}}
{{- define "nodemesh.labels" -}}
{{ include "nodemesh.selectorLabels" . }}
{{ include "nodemesh.commonLabels" (index . 0) }}
{{- end }}

{{- /* Labels of the pods of a component. The mesh never takes in what it is made of. Takes [context, component]. */ -}}
{{- define "nodemesh.podLabels" -}}
{{ include "nodemesh.selectorLabels" . }}
app.kubernetes.io/part-of: nodemesh
nodemesh.io/dataplane: disabled
{{- end }}

{{- /* An image of this release. Takes [context, name]. */ -}}
{{- define "nodemesh.image" -}}
{{- $values := (index . 0).Values.image -}}
{{ $values.registry }}/{{ index . 1 }}:{{ $values.tag | default (index . 0).Chart.AppVersion }}
{{- end }}

{{- /* The part of a path before the first directory with a variable in it: what can be mounted. */ -}}
{{- define "nodemesh.fixedPart" -}}
{{- regexReplaceAll "/[^/]*[$][(].*$" . "" -}}
{{- end }}

{{- /* Who may read metrics of a component, beside processes of its own host. Takes [context, component]. */ -}}
{{- define "nodemesh.metricsReaders" -}}
{{- $root := index . 0 -}}
{{- $more := (index $root.Values (index . 1)).metrics.allow -}}
{{- concat (list $root.Release.Namespace $root.Values.monitoringNamespace) $more | compact | uniq | join "," -}}
{{- end }}

{{- /* Where agents get configuration and certificates. istiod takes an agent for one of the namespace of its token, and agents
       say that theirs is nodemesh-system. Takes the context. */ -}}
{{- define "nodemesh.controlAddress" -}}
{{- $address := .Values.agent.controlPlane.address -}}
{{- if and (not $address) (not .Values.control.enabled) -}}
{{- fail "agent.controlPlane.address: control.enabled is false, so agents need another control plane's address, such as https://istiod.istio-system.svc:15012" -}}
{{- end -}}
{{- if and $address (ne .Release.Namespace "nodemesh-system") -}}
{{- fail "agent.controlPlane.address: another control plane knows the agents of the namespace nodemesh-system alone: install the release there" -}}
{{- end -}}
{{- $address | default (printf "https://mesh-control.%s.svc:15012" .Release.Namespace) -}}
{{- end }}
