{{- define "nodemesh.schema.destinationRule" -}}
description: How connections to a service are made
type: object
required: [host]
properties:
  host:
    description: The service, by its name or with a wildcard in front
    type: string
    minLength: 1
  trafficPolicy:
    {{- include "nodemesh.schema.trafficPolicy" . | nindent 4 }}
  subsets:
    description: Parts of the service's endpoints, for routes to name
    type: array
    items:
      type: object
      required: [name]
      properties:
        name:
          type: string
          minLength: 1
        labels:
          type: object
          additionalProperties:
            type: string
        trafficPolicy:
          {{- include "nodemesh.schema.trafficPolicy" . | nindent 10 }}
  exportTo:
    {{- include "nodemesh.schema.strings" "Namespaces of the clients that it is for: names, . for its own, * for all" | nindent 4 }}
  workloadSelector:
    {{- include "nodemesh.schema.selector" . | nindent 4 }}
{{- end }}

{{- define "nodemesh.schema.trafficPolicy" -}}
type: object
properties:
  {{- include "nodemesh.schema.trafficSettings" . | nindent 2 }}
  portLevelSettings:
    description: For single ports of the service, instead of what is said for all
    type: array
    maxItems: 4096
    items:
      type: object
      properties:
        port:
          type: object
          properties:
            number:
              type: integer
              minimum: 1
              maximum: 65535
        {{- include "nodemesh.schema.trafficSettings" . | nindent 8 }}
  tunnel:
    type: object
    required: [targetHost, targetPort]
    properties:
      protocol:
        type: string
      targetHost:
        type: string
      targetPort:
        type: integer
        minimum: 1
        maximum: 65535
  proxyProtocol:
    type: object
    properties:
      version:
        type: string
        enum: [V1, V2]
  retryBudget:
    type: object
    properties:
      percent:
        type: number
        minimum: 0
        maximum: 100
      minRetryConcurrency:
        {{- include "nodemesh.schema.count" . | nindent 8 }}
      budgetInterval:
        type: string
{{- end }}

{{- define "nodemesh.schema.trafficSettings" -}}
loadBalancer:
  {{- include "nodemesh.schema.loadBalancer" . | nindent 2 }}
connectionPool:
  {{- include "nodemesh.schema.connectionPool" . | nindent 2 }}
outlierDetection:
  {{- include "nodemesh.schema.outlierDetection" . | nindent 2 }}
tls:
  {{- include "nodemesh.schema.clientTls" . | nindent 2 }}
{{- end }}

{{- define "nodemesh.schema.count" -}}
type: integer
format: int64
minimum: 0
{{- end }}

{{- define "nodemesh.schema.loadBalancer" -}}
description: Which endpoint takes a connection
type: object
x-kubernetes-validations:
  - rule: "!(has(self.simple) && has(self.consistentHash))"
    message: only one of simple and consistentHash can be set
properties:
  simple:
    type: string
    enum: [UNSPECIFIED, LEAST_CONN, LEAST_REQUEST, PASSTHROUGH, RANDOM, ROUND_ROBIN]
  consistentHash:
    type: object
    properties:
      httpHeaderName:
        type: string
      httpCookie:
        type: object
        required: [name]
        properties:
          name:
            type: string
          path:
            type: string
          ttl:
            type: string
          attributes:
            type: array
            items:
              type: object
              properties:
                name:
                  type: string
                value:
                  type: string
      useSourceIp:
        type: boolean
      httpQueryParameterName:
        type: string
      minimumRingSize:
        {{- include "nodemesh.schema.count" . | nindent 8 }}
      ringHash:
        type: object
        properties:
          minimumRingSize:
            {{- include "nodemesh.schema.count" . | nindent 12 }}
      maglev:
        type: object
        properties:
          tableSize:
            {{- include "nodemesh.schema.count" . | nindent 12 }}
  localityLbSetting:
    {{- include "nodemesh.schema.locality" . | nindent 4 }}
  zoneAwareLbSetting:
    type: object
    properties:
      enabled:
        type: boolean
      failover:
        {{- include "nodemesh.schema.failover" . | nindent 8 }}
      failoverPriority:
        {{- include "nodemesh.schema.strings" "Labels that endpoints should share with the client, most important first" | nindent 8 }}
      minClusterSize:
        {{- include "nodemesh.schema.count" . | nindent 8 }}
  warmup:
    type: object
    required: [duration]
    properties:
      duration:
        {{- include "nodemesh.schema.duration" "How long a new endpoint gets less than its share" | nindent 8 }}
      minimumPercent:
        type: number
        minimum: 0
        maximum: 100
      aggression:
        type: number
        minimum: 1
  warmupDurationSecs:
    type: string
  backendUtilization:
    type: object
    x-kubernetes-preserve-unknown-fields: true
{{- end }}

{{- define "nodemesh.schema.locality" -}}
description: Which regions and zones are preferred; only one of distribute, failover and failoverPriority
type: object
x-kubernetes-validations:
  - rule: "(has(self.distribute) ? 1 : 0) + (has(self.failover) ? 1 : 0) + (has(self.failoverPriority) ? 1 : 0) <= 1"
    message: only one of distribute, failover and failoverPriority can be set
properties:
  enabled:
    type: boolean
  distribute:
    type: array
    items:
      type: object
      properties:
        from:
          type: string
        to:
          description: Percentages by locality, 100 in sum
          type: object
          additionalProperties:
            {{- include "nodemesh.schema.count" . | nindent 12 }}
  failover:
    {{- include "nodemesh.schema.failover" . | nindent 4 }}
  failoverPriority:
    {{- include "nodemesh.schema.strings" "Labels that endpoints should share with the client, most important first" | nindent 4 }}
{{- end }}

{{- define "nodemesh.schema.failover" -}}
type: array
items:
  type: object
  properties:
    from:
      type: string
    to:
      type: string
{{- end }}

{{- define "nodemesh.schema.connectionPool" -}}
description: How many connections there may be, and for how long; 0 is as if nothing were said
type: object
properties:
  tcp:
    type: object
    properties:
      maxConnections:
        {{- include "nodemesh.schema.count" . | nindent 8 }}
      connectTimeout:
        {{- include "nodemesh.schema.duration" "How long it may take to connect" | nindent 8 }}
      tcpKeepalive:
        type: object
        properties:
          probes:
            {{- include "nodemesh.schema.count" . | nindent 12 }}
          time:
            {{- include "nodemesh.schema.duration" "Silence before the first probe" | nindent 12 }}
          interval:
            {{- include "nodemesh.schema.duration" "Time between probes" | nindent 12 }}
      maxConnectionDuration:
        {{- include "nodemesh.schema.duration" "After which a connection is closed" | nindent 8 }}
      idleTimeout:
        {{- include "nodemesh.schema.duration" "Silence after which a connection is closed" | nindent 8 }}
  http:
    type: object
    properties:
      {{- range tuple "http1MaxPendingRequests" "http2MaxRequests" "maxRequestsPerConnection" "maxRetries" "maxConcurrentStreams" }}
      {{ . }}:
        {{- include "nodemesh.schema.count" $ | nindent 8 }}
      {{- end }}
      idleTimeout:
        {{- include "nodemesh.schema.duration" "Silence after which a connection is closed" | nindent 8 }}
      h2UpgradePolicy:
        type: string
        enum: [DEFAULT, DO_NOT_UPGRADE, UPGRADE]
      useClientProtocol:
        type: boolean
      http2KeepAlive:
        type: object
        properties:
          interval:
            type: string
          timeout:
            type: string
{{- end }}

{{- define "nodemesh.schema.outlierDetection" -}}
description: When an endpoint that fails is left alone for a while; an empty object turns it on
type: object
properties:
  {{- range tuple "consecutiveErrors" "consecutive5xxErrors" "consecutiveGatewayErrors" "consecutiveLocalOriginFailures" }}
  {{ . }}:
    {{- include "nodemesh.schema.count" $ | nindent 4 }}
  {{- end }}
  {{- range tuple "maxEjectionPercent" "minHealthPercent" }}
  {{ . }}:
    type: integer
    minimum: 0
    maximum: 100
  {{- end }}
  splitExternalLocalOriginErrors:
    type: boolean
  outlierDetectionHttpErrorCodes:
    type: array
    items:
      type: integer
  interval:
    {{- include "nodemesh.schema.duration" "Time between looks" | nindent 4 }}
  baseEjectionTime:
    {{- include "nodemesh.schema.duration" "How long an endpoint is left alone the first time" | nindent 4 }}
{{- end }}

{{- define "nodemesh.schema.clientTls" -}}
description: TLS towards the service; the mesh's own mutual TLS needs none of it
type: object
properties:
  mode:
    type: string
    enum: [DISABLE, SIMPLE, MUTUAL, ISTIO_MUTUAL]
  {{- range tuple "clientCertificate" "privateKey" "caCertificates" "caCrl" "credentialName" "sni" }}
  {{ . }}:
    type: string
  {{- end }}
  subjectAltNames:
    {{- include "nodemesh.schema.strings" "Names of which the server's certificate must have one" | nindent 4 }}
  insecureSkipVerify:
    type: boolean
{{- end }}
