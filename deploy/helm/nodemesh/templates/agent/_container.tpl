{{- /* What the check and the agent itself have in common: both need the same of a node. */ -}}
{{- define "nodemesh.agentContainer" -}}
image: {{ include "nodemesh.image" (list . "mesh-agent") }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
env:
  - name: NODE_NAME
    valueFrom:
      fieldRef:
        fieldPath: spec.nodeName
  - name: POD_NAME
    valueFrom:
      fieldRef:
        fieldPath: metadata.name
  - name: POD_NAMESPACE
    valueFrom:
      fieldRef:
        fieldPath: metadata.namespace
securityContext:
  runAsUser: 0
  runAsGroup: 0
  privileged: false
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
    # Load and attach eBPF programs; find, and enter, pods' network namespaces; send SYNs again over pods' loopback.
    add: [BPF, NET_ADMIN, NET_RAW, SYS_ADMIN, SYS_PTRACE]
  seccompProfile:
    type: RuntimeDefault
  {{- with .Values.agent.appArmorProfile }}
  appArmorProfile:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.agent.seLinuxOptions }}
  seLinuxOptions:
    {{- toYaml . | nindent 4 }}
  {{- end }}
resources:
  {{- toYaml .Values.agent.resources | nindent 2 }}
volumeMounts:
  - name: cgroup
    mountPath: {{ include "nodemesh.fixedPart" .Values.agent.cgroupRoot }}
    readOnly: true
  - name: bpf
    mountPath: /sys/fs/bpf
  - name: run
    mountPath: /run/nodemesh
  - name: state
    mountPath: /var/lib/nodemesh
  - name: cni-bin
    mountPath: {{ .Values.agent.cni.binDir }}
  - name: cni-conf
    mountPath: {{ .Values.agent.cni.confDir }}
  - name: trust-bundle
    mountPath: /var/run/secrets/nodemesh
    readOnly: true
  - name: token
    mountPath: /var/run/secrets/tokens
    readOnly: true
{{- end }}
